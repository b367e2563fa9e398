"""Admission: which waiting request gets a slot next, fair between accounts."""
