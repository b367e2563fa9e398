"""GGUF files read without llama.cpp: headers, shapes, tensor types."""
