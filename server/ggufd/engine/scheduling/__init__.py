"""Batch scheduling: which rows the next step computes, and with how many threads."""
