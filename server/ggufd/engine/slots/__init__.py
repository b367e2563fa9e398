"""Prefix caching in slots: matching, placement, eviction, context shift."""
