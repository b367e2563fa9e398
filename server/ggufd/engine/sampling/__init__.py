"""Sampling: from a row of logits to text that may be sent. Samplers, grammars, banned phrases, detokenization."""
