"""`ggufd bench`: loads servers over HTTP and compares them. Knows nothing of this server."""
