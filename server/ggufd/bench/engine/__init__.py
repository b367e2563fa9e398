"""`ggufd bench engine`: the engine's loop in this process, without HTTP, beside llama.cpp's benchmark programs.

The one part of the bench that imports the engine; all else knows a server over HTTP only."""
