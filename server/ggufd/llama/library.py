"""Loading of llama.cpp's shared library, with a one-line error where it fails.

Of the package llama_cpp only the functions of C are imported, and what is made of them when somebody asks for it: chat
formats and caches, with NumPy, Jinja and SQLite, take a tenth of a second in each process.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

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
        _import_functions()
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelError(
            f"llama-cpp-python cannot be loaded: {error}; a wheel of another machine is best replaced: "
            "pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
        ) from None


def _import_functions() -> None:
    """Import `llama_cpp.llama_cpp`, with a package around it that has its names, as the real one does.

    The package's own code runs when it is asked for any other name.
    """
    spec = None if "llama_cpp" in sys.modules else importlib.util.find_spec("llama_cpp")
    if spec is None or spec.loader is None or spec.origin is None:
        import llama_cpp  # noqa: F401

        return
    package = sys.modules["llama_cpp"] = importlib.util.module_from_spec(spec)
    try:
        import llama_cpp.llama_cpp as functions
    except BaseException:
        del sys.modules["llama_cpp"]
        raise
    vars(package).update({name: value for name, value in vars(functions).items() if not name.startswith("_")})
    vars(package).update(_version(Path(spec.origin)), __getattr__=_RestOfPackage(package))


def _version(file: Path) -> dict[str, str]:
    """The package's version as a name of its own; nothing where it is written in another way."""
    found = re.search(r'^__version__ = "([^"]+)"$', file.read_text(encoding="utf-8"), re.MULTILINE)
    return {} if found is None else {"__version__": found[1]}


class _RestOfPackage:
    """`__getattr__` of the package: runs its code at the first name that it does not have yet."""

    def __init__(self, package: ModuleType) -> None:
        self._package = package

    def __call__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        del vars(self._package)["__getattr__"]
        spec = self._package.__spec__
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(self._package)
        return getattr(self._package, name)
