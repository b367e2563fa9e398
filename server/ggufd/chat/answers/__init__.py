"""Answer planning (format, grammar) and the answer parser."""
