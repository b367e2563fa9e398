"""A server with a projector: how it starts, what it says, and that nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ggufd.images.encoder.worker import NAME
from ggufd.models import hub
from tests.support.fakes.api_server import wait_until
from tests.support.models.projector_file import FAST, embeddings_of, write_projector, write_shaped, write_sparse
from tests.support.programs.live_server import LiveServer

ROOT = Path(__file__).parents[2]
PREFIX = "ggufd-images-"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo model and a projector beside it, as published models lie."""
    folder = tmp_path_factory.mktemp("model")
    write_projector(folder / "mmproj-eyes.gguf", hub.find("").path)
    (folder / "demo.gguf").symlink_to(hub.find("").path)
    return folder


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder for temporary files of the programs that are started."""
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", None)
        yield folder
    tempfile.tempdir = None


def row_folders(temporary: Path) -> list[Path]:
    return [path for path in temporary.iterdir() if path.name.startswith(PREFIX)]


def is_gone(process: psutil.Process) -> bool:
    """Whether it has ended, though nobody may have waited for it yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_projector_beside_the_model_is_loaded_and_told(folder: Path, temporary: Path) -> None:
    server = LiveServer("--model", str(folder), "--flash-attn", "on", "--ctx-size", "1024")
    try:
        server.wait_ready()
        assert re.search(r"Images +read by mmproj-eyes\.gguf, mlp, 153 KiB", "".join(server.log))
        assert len(row_folders(temporary)) == 1
        names = sorted(child.name() for child in server.children())
        assert names == ["ggufd-decoder", "ggufd-encoder", "ggufd-engine", "ggufd-text", "python"]
    finally:
        children = server.children()
        server.stop()
    wait_until(lambda: all(map(is_gone, children)))
    assert row_folders(temporary) == []


def test_nothing_is_left_of_a_server_that_was_killed(folder: Path, temporary: Path) -> None:
    server = LiveServer("--model", str(folder), "--flash-attn", "on", "--ctx-size", "1024")
    try:
        server.wait_ready()
        assert len(row_folders(temporary)) == 1
        children = server.children()
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: all(map(is_gone, children)))
    finally:
        server.stop()
    assert row_folders(temporary) == []


def test_a_stop_while_the_projector_is_loaded_does_not_wait_for_it(folder: Path, temporary: Path) -> None:
    server = LiveServer("--model", str(folder), "--flash-attn", "on", "--ctx-size", "1024")
    try:
        # Halted, it would take for ever.
        encoder = halted_encoder(server)
        wait_for_line(server, "100 %")
    finally:
        server.stop()
    assert server.exit_code == 0
    assert is_gone(encoder)
    assert row_folders(temporary) == []


def halted_encoder(server: LiveServer) -> psutil.Process:
    """The encoder, stopped as soon as it has its name: it loads nothing before."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in server.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name() == NAME:
                    child.suspend()
                    return child
        time.sleep(0.002)
    raise AssertionError("there is no encoder")


def wait_for_line(server: LiveServer, part: str) -> None:
    deadline = time.monotonic() + 60
    while not any(part in line for line in server.log):
        assert time.monotonic() < deadline, server.log
        time.sleep(0.05)


def ended(*arguments: str) -> str:
    """The last line of a server that does not start."""
    command = [sys.executable, "-m", "ggufd", "--port", "0", "--flash-attn", "on", "--ctx-size", "1024", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_one_of_another_width_ends_the_start_with_one_line(tmp_path: Path) -> None:
    path = write_sparse(tmp_path / "narrow.gguf", 64)
    assert ended("--mmproj", str(path)) == (
        f"ggufd: {path}: makes rows of 64 numbers, but {hub.find('').path.name} has embeddings of 576; --mmproj needs "
        "the projector that was published with this model"
    )


def test_one_over_which_libmtmd_aborts_ends_the_start_with_one_line(tmp_path: Path, temporary: Path) -> None:
    rows = embeddings_of(hub.find("").path)
    path = write_shaped(tmp_path / "hostile.gguf", rows, FAST, {"clip.use_gelu": 1})
    said = ended("--mmproj", str(path))
    assert said.startswith(f"ggufd: {path}: llama.cpp cannot use this projector: signal SIGABRT")
    assert said.endswith("; leave --mmproj out to serve the model without images")
    assert row_folders(temporary) == []
