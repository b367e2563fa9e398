"""`ggufd bench`: benchmarks of any OpenAI-compatible server over HTTP. Knows nothing of this one."""
