"""ggufd: an OpenAI-compatible HTTP server for one GGUF model."""

__version__ = "0.1.0"
