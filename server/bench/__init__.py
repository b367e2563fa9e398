"""`ggufd bench`: measures any OpenAI-compatible server over HTTP; knows nothing of ours."""
