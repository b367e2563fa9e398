"""Engine with continuous batching: `Engine.step`, its assembly and its process. Synchronous; knows no HTTP, no JSON."""
