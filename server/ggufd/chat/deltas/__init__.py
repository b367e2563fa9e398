"""Pieces of an answer (content, reasoning, tool calls), read from a growing text."""
