"""HTTP without routes: connections, authentication, request bodies, JSON and error responses, request log."""
