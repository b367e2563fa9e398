"""Directory of the replicas: who is there, how loaded, and what each account was served."""
