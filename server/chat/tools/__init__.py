"""Formats that models call tools in: how each is recognised, read and constrained."""
