"""The HTTP side: parse, submit, format."""
