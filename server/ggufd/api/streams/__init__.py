"""Resumable streams: events that are kept after a disconnect, readers that come back for the rest, and their limits."""
