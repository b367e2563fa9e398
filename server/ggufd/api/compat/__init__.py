"""Routes of KoboldCpp, Ollama, text-generation-webui, tabbyAPI and vLLM."""
