"""llama-server's command line and its variables, as data, and their translation to settings."""
