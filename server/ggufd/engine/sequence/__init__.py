"""The state of one sequence while it waits and runs."""
