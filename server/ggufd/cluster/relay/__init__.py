"""One answer on its way: connection to a replica, headers, beginning of a stream, end in an error."""
