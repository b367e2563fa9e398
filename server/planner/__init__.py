"""`ggufd plan`: what a model will take, where it goes, and what fits, said before it is loaded."""
