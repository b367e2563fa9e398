"""Faults done to the real server: processes killed and stopped, files and disks run out, crowds of connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from ggufd.chat.process import worker
from ggufd.settings import listen
from tests.support.limits import ANSWER_S
from tests.support.programs.live_server import ROOT, LiveServer, free_port, live_server

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform == "win32", reason="sends signals"),
]

SMALL = ("--ctx-size", "4096", "--parallel", "2", "--threads", "1", "--flash-attn", "off")
STEP_TIMEOUT_S = 2.0
ENDLESS: dict[str, Any] = {"prompt": "Once", "max_tokens": 4000, "ignore_eos": True}
SHORT: dict[str, Any] = {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 1}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server(*SMALL, "--step-timeout-s", str(STEP_TIMEOUT_S)) as running:
        yield running


def ask(url: str, body: dict[str, Any] = SHORT, timeout_s: float = 60) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json=body, timeout=timeout_s, trust_env=False)


def ask_again(url: str) -> str:
    """What is answered as soon as somebody answers."""
    deadline_s = time.monotonic() + 60
    while (response := ask(url)).status_code == 503 and time.monotonic() < deadline_s:
        time.sleep(0.05)
    text: str = response.json()["choices"][0]["text"]
    return text


Told = tuple[dict[str, Any], float]
"""The error that ended a request, and when it came."""


async def streamed(http: httpx.AsyncClient) -> Told:
    """An endless stream, up to its error event."""
    async with http.stream("POST", "/v1/completions", json={**ENDLESS, "stream": True}) as response:
        assert response.status_code == 200
        lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
    return json.loads(lines[-1].removeprefix("data: "))["error"], time.monotonic()


async def whole(http: httpx.AsyncClient) -> Told:
    """An answer that would come in one piece."""
    response = await http.post("/v1/completions", json=ENDLESS)
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    return response.json()["error"], time.monotonic()


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT", "SIGSTOP"])
@pytest.mark.timed
async def test_however_the_engine_ends_everybody_is_told_within_a_second(server: LiveServer, name: str) -> None:
    """Four streams and four whole answers on two slots: some run, some wait. SIGSTOP stands for a step that hangs."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as http:
        asking = [asyncio.create_task(call(http)) for _ in range(4) for call in (streamed, whole)]
        assert await asyncio.to_thread(server.wait_running, 2, 30)
        await asyncio.sleep(0.2)
        server.engine.send_signal(getattr(signal, name))
        died_s = time.monotonic()
        told = await asyncio.gather(*asking)
        assert {error["code"] for error, _ in told} == {"engine_down"}
        # The watchdog's limit grows where steps take long, as they do on a busy machine.
        hung = re.search(r"no sign of life for ([\d.]+) s", told[0][0]["message"])
        assert bool(hung) is (name == "SIGSTOP")
        limit_s = float(hung[1]) if hung else 0.0
        assert max(when_s for _, when_s in told) - died_s < limit_s + 1
        assert (await http.get("/health/live")).status_code == 200
    assert ask_again(server.url) == " Paris"


def test_a_dead_text_process_is_started_again(server: LiveServer) -> None:
    assert ask_again(server.url) == " Paris"
    for child in server.children():
        if child.name() == worker.NAME:
            child.kill()
    while (ready := httpx.get(f"{server.url}/ready", trust_env=False, timeout=ANSWER_S)).status_code == 200:
        time.sleep(0.005)
    assert ready.json()["status"] == "text_restarting"
    while httpx.get(f"{server.url}/ready", trust_env=False, timeout=ANSWER_S).status_code != 200:
        time.sleep(0.05)
    assert ask(server.url).json()["choices"][0]["text"] == " Paris"


def test_a_server_killed_under_load_leaves_nothing_and_starts_again_at_its_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    port = free_port()
    for _ in range(2):
        with live_server(*SMALL, "--port", str(port)) as server:
            assert ask(server.url).status_code == 200
            children = server.children()
            assert len(children) >= 2
            with contextlib.ExitStack() as stack:
                for _ in range(4):
                    connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                    connection.sendall(raw_request({**ENDLESS, "stream": True}))
                assert server.wait_running(2, 30)
                os.kill(server.pid, signal.SIGKILL)
                gone, alive = psutil.wait_procs(children, timeout=ANSWER_S)
                assert alive == []
                assert len(gone) == len(children)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timed
def test_two_thousand_idle_connections_and_others_are_served(server: LiveServer) -> None:
    with crowd(server, min(2000, listen.connections_limit() - 100)):
        started_s = time.monotonic()
        assert httpx.get(f"{server.url}/health", timeout=ANSWER_S, trust_env=False).status_code == 200
        assert time.monotonic() - started_s < 1
        assert ask(server.url).status_code == 200


@pytest.mark.parametrize("n_files", [160, 64])
def test_too_few_files_for_all_and_others_are_served(n_files: int) -> None:
    """The engine is killed meanwhile: it takes files to start it again."""
    with live_server(*SMALL, n_files=n_files) as server, crowd(server, 400):
        assert any("ulimit -n" in line for line in server.log)
        for _ in range(3):
            assert ask(server.url).status_code == 200
        server.engine.kill()
        assert ask_again(server.url) == " Paris"
        assert not any("Traceback" in line for line in server.log)


def test_full_disks_and_folders_that_cannot_be_written_do_no_harm(tmp_path: Path) -> None:
    """Standard output is a full disk, and what should be folders are files."""
    (tmp_path / "file").write_text("")
    port = free_port()
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "file"), "XDG_CONFIG_HOME": str(tmp_path / "file")}
    command = [sys.executable, "-m", "ggufd", "--port", str(port), "--ctx-size", "512", "--threads", "1"]
    with (
        open("/dev/full", "wb") as full,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=full, stderr=subprocess.PIPE) as process,
    ):
        assert process.stderr is not None
        try:
            said = next(line for line in process.stderr if b"ready at" in line)
            assert b"No space left on device" in said
            assert ask(f"http://127.0.0.1:{port}").status_code == 200
        finally:
            process.terminate()
            rest = process.stderr.read()
    assert b"Traceback" not in rest
    assert process.returncode in (0, 120), "120 is Python's word for an output that could not be flushed"


def raw_request(body: dict[str, Any]) -> bytes:
    raw = json.dumps(body).encode()
    return f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw


@contextlib.contextmanager
def crowd(server: LiveServer, n: int) -> Iterator[None]:
    """So many connections that say nothing; those that the server drops are not opened again."""
    address = "127.0.0.1", urlsplit(server.url).port or 0
    with contextlib.ExitStack() as stack:
        for _ in range(n):
            stack.enter_context(socket.create_connection(address, timeout=30))
        yield
