"""Routes for the cluster that a server belongs to: load, served tokens, kept chats."""
