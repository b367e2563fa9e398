"""A native context: batches, KV cache, samplers, embeddings."""
