"""What an answer may hold, and its parser."""
