"""Decisions of the loader: GPU placement, numbers of contexts, and what a loaded engine reports."""
