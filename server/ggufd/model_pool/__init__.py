"""Model pool: the models that are known, one of which is loaded, and whose turn it is to have it swapped."""
