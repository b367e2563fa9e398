"""Fixtures of all tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model() -> Iterator[Path]:
    """The path of the tiny model's file."""
    with tempfile.TemporaryDirectory(prefix="ggufd-tests-") as folder:
        yield write_tiny_model(Path(folder) / "tiny.gguf")
