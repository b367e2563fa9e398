"""Queueing: order of waiting requests, fair between accounts; admission, preemption, backpressure."""
