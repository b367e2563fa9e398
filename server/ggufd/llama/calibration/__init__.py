"""The measurement that decides flash attention on a CPU."""
