"""Model sources: local files, Hugging Face repositories, ollama's store, the demo model's package."""
