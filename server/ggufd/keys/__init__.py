"""API keys with their roles and limits, as plain data and as a file."""
