"""Text in, text out: chat templates, tokenizing, grammars. Knows no HTTP."""
