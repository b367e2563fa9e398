"""Plans for the server, made in a process of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggufd.errors import ModelError
from ggufd.planner.apart import plan_apart
from ggufd.settings import sources
from tests.support.models.tiny_model import write_tiny_model


async def test_it_is_what_the_command_says_of_the_model(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf")
    found = await plan_apart(sources.load(None, {"model": str(path), "ctx_size": 256}, {}))
    assert found["file"] == str(path)
    assert found["best"]["fits"] is True
    assert found["context"]["tokens_each"] == 256


async def test_what_is_wrong_is_said_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        await plan_apart(sources.load(None, {"model": str(tmp_path / "none.gguf")}, {}))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no model at all")
    with pytest.raises(ModelError, match=r"broken\.gguf"):
        await plan_apart(sources.load(None, {"model": str(broken)}, {}))
