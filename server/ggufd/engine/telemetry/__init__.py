"""Counters and the trace of each step."""
