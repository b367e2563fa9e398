"""OpenAI's Responses API over the chat request: items instead of messages, events with names, answers that are kept."""
