"""Tool calls: what all formats share."""
