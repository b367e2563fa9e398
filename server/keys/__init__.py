"""API keys: whose a key is, the file that holds them hashed, and the command that writes it."""
