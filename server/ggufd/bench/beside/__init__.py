"""Comparison of a cluster's routing with plain Ray Serve's: the same growing chats at both, on the same Ray."""
