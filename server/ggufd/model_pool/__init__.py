"""Model pool: the models that are known, which of them are loaded, and whose turn it is to have one swapped."""
