"""Bytes of an image from what a request says of it: a data URI, base64, or an address or a file that is allowed."""
