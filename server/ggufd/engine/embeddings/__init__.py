"""Embedding and reranking requests, computed between the steps of decoding sequences."""
