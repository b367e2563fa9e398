"""Images of a request: fetched, decoded, and encoded into the rows that the engine reads."""
