"""Loading of llama.cpp's shared library, with a one-line error where it fails."""

from __future__ import annotations

from ggufd.errors import ModelError


def load() -> None:
    """Load the library before anything else of this package does. Raises ModelError.

    A wheel that was built elsewhere may want another libc, instructions that this CPU lacks, or CUDA's libraries.
    """
    try:
        import llama_cpp  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelError(
            f"llama-cpp-python cannot be loaded: {error}; a wheel of another machine is best replaced: "
            "pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
        ) from None
