"""Tool calls: interface of the formats, grammars, tool prompts."""
