"""Batches on disk: files, and lines with their results, in SQLite. Knows no HTTP and no engine."""
