"""Several models over HTTP: where requests wait for theirs, the list of models, llama-server's router."""
