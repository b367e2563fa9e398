"""Speculative decoding: prompt lookup and draft models."""
