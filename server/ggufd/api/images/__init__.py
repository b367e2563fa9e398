"""Images of a request: what clients write for them, and their rows in its prompt."""
