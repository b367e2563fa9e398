"""Interfaces of what computes: decoder, vocabulary, constraint, sampler; and token sequences."""
