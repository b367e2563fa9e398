"""llama-server's flags for the Hugging Face hub, by the whole program against a hub on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fakes.hub_server import Hub, HubServer
from tests.support.models import gguf_files
from tests.support.models.gguf_files import llama

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
HEAD, SIZE = gguf_files.header(*llama(n_vocab=2000))
MODEL = HEAD + bytes(SIZE)
REPO = "someone/model-GGUF"


@pytest.fixture
def gated() -> Iterator[Hub]:
    """A hub whose one repository wants a token."""
    with HubServer() as made:
        made.repos[REPO] = {f"model.{kind}.gguf": MODEL for kind in ("Q4_K_M", "Q8_0")}
        made.token = "good"
        yield made


def check(far: Hub, folder: Path, *arguments: str, **variables: str) -> str:
    """What `ggufd check` says."""
    names = ("HF_", "GGUFD_", "LLAMA_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    own = {"HF_ENDPOINT": far.url, "HF_HOME": str(folder), "PYTHONPATH": str(ROOT / "server"), "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, "-m", "ggufd", "check", *arguments],
        cwd=folder,
        env={**kept, **own, "COLUMNS": "200", **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


VALID = "The settings are valid"


def test_a_token_opens_a_repository(gated: Hub, tmp_path: Path) -> None:
    assert VALID in check(gated, tmp_path, "--hf-repo", f"{REPO}:Q8_0", "--hf-token", "good")
    assert VALID in check(gated, tmp_path, "-hf", REPO, "-hff", "model.Q4_K_M.gguf", HF_TOKEN="good")
    assert VALID in check(gated, tmp_path, "-hff", "model.Q8_0.gguf", HF_TOKEN="good", LLAMA_ARG_HF_REPO=REPO)
    assert VALID not in check(gated, tmp_path, "-hf", REPO, "-hff", "model.Q2_K.gguf", HF_TOKEN="good")


def test_without_it_the_repository_stays_closed(gated: Hub, tmp_path: Path) -> None:
    said = check(gated, tmp_path, "--hf-repo", REPO, "--hf-token", "wrong")
    assert said.startswith("ggufd: ")
    assert len(said.splitlines()) == 1


def test_offline_asks_nobody(gated: Hub, tmp_path: Path) -> None:
    said = check(gated, tmp_path, "--hf-repo", REPO, "--hf-token", "good", "--offline")
    assert said.startswith("ggufd: ")
    assert gated.ranges == []
    assert gated.served == 0
