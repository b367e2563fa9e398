"""Health, metrics, traces, the queue, change of the model."""
