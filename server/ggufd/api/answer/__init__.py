"""Engine events to deltas, usage and log-probabilities, and their framing as SSE or NDJSON."""
