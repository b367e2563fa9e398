"""Commands `plan` and `check`: memory and placement of a model, without loading it."""
