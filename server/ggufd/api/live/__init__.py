"""Live view: what the server is doing, told once a second to who looks, and what may be done about it."""
