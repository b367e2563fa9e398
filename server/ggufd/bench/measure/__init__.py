"""A server under load: client, texts, figures, tables."""
