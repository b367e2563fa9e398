"""`ggufd bench curves`: scaling of the server with streams, context and cached chats, and the trade of `max_gap_ms`."""
