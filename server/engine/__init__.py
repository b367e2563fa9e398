"""The synchronous engine: sequences, queue, scheduler, prefix cache. Knows no HTTP and no JSON."""
