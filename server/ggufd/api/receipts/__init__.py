"""Receipts of deterministic requests: what a text came of, so that it can be computed again."""
