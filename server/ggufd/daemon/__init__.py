"""The running server: start, serve, change the model, drain."""
