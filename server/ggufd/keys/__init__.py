"""API keys and what each of them grants, as plain data and as a file."""
