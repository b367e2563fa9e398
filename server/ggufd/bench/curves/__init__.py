"""Growth curves: figures over load and context."""
