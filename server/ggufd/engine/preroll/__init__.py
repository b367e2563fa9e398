"""Prefill of foreseen prompts while the engine is idle."""
