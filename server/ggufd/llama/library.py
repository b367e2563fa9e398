"""Loading of llama.cpp's shared library, with a one-line error where it fails."""

from __future__ import annotations

import os

from ggufd.errors import ModelError

_LOOKS = "20000"
"""Looks of a compute thread for the others before it sleeps, of GNU's OpenMP: a third of a millisecond.

Its own 300,000 are 4 ms. As long a thread keeps its core while it waits for another one, whose core another process
has: of engine and encoder, one would then run and the other hinder it. Fewer cost on an idle machine, where waking
takes longer than waiting: without any an image took 1.3 s instead of 0.95.
"""


def load() -> None:
    """Load the library before anything else of this package does. Raises ModelError.

    A wheel that was built elsewhere may want another libc, instructions that this CPU lacks, or CUDA's libraries.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        # Read when the library is loaded, and by no other.
        os.environ.setdefault("GOMP_SPINCOUNT", _LOOKS)
    try:
        import llama_cpp  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelError(
            f"llama-cpp-python cannot be loaded: {error}; a wheel of another machine is best replaced: "
            "pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
        ) from None
