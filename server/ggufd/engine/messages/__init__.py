"""Messages that cross the boundary of the engine's process: plain frozen data.

To the engine: a `Command` (`requests`). From the engine: one list of `Event` a step (`events`, `reports`).
Knows no HTTP, no JSON and no llama_cpp.
"""
