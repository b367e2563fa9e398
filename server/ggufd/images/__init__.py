"""Images of requests: read, decoded, and encoded into rows that the engine computes in place of tokens."""
