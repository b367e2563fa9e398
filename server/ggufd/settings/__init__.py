"""Settings: definitions, sources, and the engine's and the API's configuration made from them."""
