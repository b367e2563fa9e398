"""ggufd: one GGUF model, served to everyone who wants to talk to it."""

__version__ = "0.1.0"
