"""HTTP API: parse a request, submit it to the engine, format the answer."""
