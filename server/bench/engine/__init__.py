"""`ggufd bench engine`: the engine's own loop in this process, without HTTP, beside llama.cpp's benchmark programs."""
