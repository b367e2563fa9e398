"""Simulation of a large cluster: cached share, load and fairness, beside other routing policies."""
