"""Server lifecycle: startup, serving, model switch, drain."""
