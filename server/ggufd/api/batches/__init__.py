"""OpenAI's files and batches: uploads, routes, and what sends the lines of a batch to the other routes."""
