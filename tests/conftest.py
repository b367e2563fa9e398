"""Fixtures of all tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_model import quiet_llama, write_tiny_model


@pytest.fixture(scope="session")
def tiny_model() -> Iterator[Path]:
    """The path of the tiny model's file."""
    quiet_llama()
    with tempfile.TemporaryDirectory(prefix="ggufd-tests-") as folder:
        yield write_tiny_model(Path(folder) / "tiny.gguf")
