"""KV states of kept chats on their way between replicas."""
