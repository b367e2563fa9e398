"""Formats of tool calls, one module a family, and their registry."""
