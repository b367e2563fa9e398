"""Image projectors: libmtmd over the vocabulary of a text model, from pixels to embedding rows."""
