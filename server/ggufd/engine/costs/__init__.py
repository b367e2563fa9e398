"""Measured costs of steps: what a batch will take, learned while serving."""
