"""State of one sequence while it waits and runs, and the cuts that its client makes."""
