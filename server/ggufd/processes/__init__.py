"""Child processes and their message pipes."""
