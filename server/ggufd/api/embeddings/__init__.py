"""Embedding and rerank routes of every API family."""
