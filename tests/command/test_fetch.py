"""`ggufd fetch`, the whole program against a hub on this machine."""

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

ROOT = Path(__file__).parents[2]
HEAD, SIZE = gguf_files.header(*llama(n_vocab=2000))
MODEL = HEAD + bytes(SIZE)
REPO = "someone/model-GGUF"


@pytest.fixture
def far() -> Iterator[Hub]:
    with HubServer() as made:
        made.repos[REPO] = {f"model.{kind}.gguf": MODEL for kind in ("Q4_K_M", "Q8_0")}
        yield made


def fetch(far: Hub, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "GGUFD_", "LLAMA_"))}
    own = {"HF_ENDPOINT": far.url, "HF_HOME": str(folder), "PYTHONPATH": str(ROOT / "server"), "NO_PROXY": "*"}
    command = [sys.executable, "-m", "ggufd", "fetch", *arguments]
    environment = {**kept, **own, **variables}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_it_downloads_what_the_settings_name_and_says_where_it_lies(far: Hub, tmp_path: Path) -> None:
    done = fetch(far, tmp_path, GGUFD_MODEL=f"hf:{REPO}:Q8_0", GGUFD_MODEL_DRAFT=f"hf:{REPO}")
    assert done.returncode == 0, done.stderr
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert [path.name for path in paths] == ["model.Q8_0.gguf", "model.Q4_K_M.gguf"]
    assert all(path.read_bytes() == MODEL for path in paths)
    assert "100 %" in done.stderr


def test_what_is_there_is_not_fetched_again_nor_is_the_hub_needed(far: Hub, tmp_path: Path) -> None:
    first = fetch(far, tmp_path, "-m", f"hf:{REPO}")
    again = fetch(far, tmp_path, "-m", f"hf:{REPO}")
    offline = fetch(far, tmp_path, "-m", f"hf:{REPO}", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert [one.returncode for one in (first, again, offline)] == [0, 0, 0], offline.stderr
    assert first.stdout == again.stdout == offline.stdout
    assert ["100 %" in one.stderr for one in (first, again, offline)] == [True, False, False]


def test_what_cannot_be_fetched_is_one_line(far: Hub, tmp_path: Path) -> None:
    done = fetch(far, tmp_path, "-m", "hf:someone/nothing")
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("ggufd: hf:someone/nothing: ")
