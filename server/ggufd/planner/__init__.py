"""The commands `plan` and `check`: what a model takes, without loading it."""
