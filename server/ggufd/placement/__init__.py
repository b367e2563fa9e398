"""Memory estimates, and the choice of what goes to which device."""
