"""The text process: tokenizing, chat templates and grammar checks, apart from the server's process."""
