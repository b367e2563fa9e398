"""Decoding of image files by Pillow, in a process of its own that may crash or be killed."""
