"""Deployment on Ray Serve: the only room that imports Ray."""
