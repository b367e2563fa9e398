"""Embeddings and reranking in every family's shape."""
