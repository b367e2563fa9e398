"""`ggufd bench goodput`: the highest rate of mixed requests at which a server keeps an objective for TTFT and ITL."""
