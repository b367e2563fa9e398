"""Conversations as prompts and answers; text in, text out."""
