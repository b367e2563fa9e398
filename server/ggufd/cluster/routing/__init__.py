"""Choice of a replica: digest of the conversation, rendezvous hashing, load guard."""
