"""Parts of one engine step: schedule, decode, sample, finish."""
