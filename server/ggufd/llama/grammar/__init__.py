"""Grammars, JSON schemas and regular expressions as llguidance enforces them."""
