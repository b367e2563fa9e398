"""HTTP only: parse, submit, format. One module per API family."""
