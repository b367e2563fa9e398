"""`ggufd replay`: computes a deterministic answer again, and says whether it is the same."""
