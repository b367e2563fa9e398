"""The only room that touches llama_cpp and llguidance."""
