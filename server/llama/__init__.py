"""The only package that imports llama_cpp: models, contexts, samplers, grammars. No policy."""
