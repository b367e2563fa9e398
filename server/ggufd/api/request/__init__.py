"""Fields of any API family to one validated engine request."""
