"""A chat request: messages, tools and calls, as OpenAI writes them and as other families are converted to."""
