"""Deltas of an answer (content, reasoning, tool calls), parsed from a growing text."""
