"""Embedding and reranking requests, computed between the steps of those who generate."""
