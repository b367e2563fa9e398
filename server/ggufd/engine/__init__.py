"""The engine: `Engine.step` and what it is made of. Synchronous; knows no HTTP and no JSON."""
