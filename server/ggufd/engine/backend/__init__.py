"""Interfaces of the backend: contexts, vocabulary, samplers, grammars; and comparison of token sequences."""
