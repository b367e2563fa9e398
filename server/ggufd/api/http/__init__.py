"""A connection, a body, an error, a log line."""
