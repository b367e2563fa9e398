"""Several servers behind one address: routing by conversation, fair shares, chats that move, on Ray Serve."""
