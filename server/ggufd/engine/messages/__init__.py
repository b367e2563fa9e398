"""Messages that cross the boundary of the engine's process: plain frozen data, one module a direction."""
