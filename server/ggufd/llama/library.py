"""Loading of llama.cpp's shared library, with a one-line error where it fails."""

from __future__ import annotations

import os

from ggufd.errors import ModelError

_LOOKS = 70_000
"""Looks of a compute thread for the others before it sleeps, of GNU's OpenMP: 2 ms on the machine of the benchmarks.

Its own 300,000 are 8 ms. As long a thread keeps its core while it waits for another one, whose core another process
has: of engine and encoder, one would then run and the other hinder it. Fewer are less than what lies between two steps,
and waking takes its time too: with 20,000 one stream was a twentieth slower.
"""


def load(looks: int = _LOOKS) -> None:
    """Load the library before anything else of this package does. Raises ModelError.

    A compute thread looks for the others so often before it sleeps, unless the environment says how they wait.
    A wheel that was built elsewhere may want another libc, instructions that this CPU lacks, or CUDA's libraries.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        # Read when the library is loaded, and by no other.
        os.environ.setdefault("GOMP_SPINCOUNT", str(looks))
    try:
        import llama_cpp  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelError(
            f"llama-cpp-python cannot be loaded: {error}; a wheel of another machine is best replaced: "
            "pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
        ) from None
