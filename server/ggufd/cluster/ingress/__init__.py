"""Ingress: one address, whose requests are forwarded to replicas and tried again where that loses nothing."""
