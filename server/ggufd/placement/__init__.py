"""Memory estimates, and placement of a model on devices."""
