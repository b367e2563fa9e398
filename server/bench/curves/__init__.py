"""`ggufd bench curves`: how the server grows with streams, context and kept chats, and what `max_gap_ms` trades."""
