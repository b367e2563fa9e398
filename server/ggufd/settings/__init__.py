"""Settings: what may be set, where each value came from, and what the engine and the API are made from."""
