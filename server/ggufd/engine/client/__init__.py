"""The engine as the API's process sees it: submission, streams, supervision."""
