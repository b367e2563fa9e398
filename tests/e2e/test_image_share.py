"""An image beside running streams, all on one CPU: its encoder gets a share of it that answers before long."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from ggufd.engine import process as engine_process
from ggufd.images.encoder import worker
from ggufd.models import hub
from tests.support.models.image_files import PATCHES, patch_uri
from tests.support.models.projector_file import SLOW, write_projector
from tests.support.programs.live_server import LiveServer, live_server

pytestmark = [
    pytest.mark.timed,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are bound to a CPU on Linux only"),
]

N_STREAMS = 2
SIDE = SLOW.image_size // SLOW.patch_size
IMAGE = patch_uri([PATCHES[i % 8] for i in range(SIDE * SIDE)], columns=SIDE)
DEADLINE_S = 300


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    model = hub.find("").path
    projector = write_projector(tmp_path_factory.mktemp("eyes") / "mmproj.gguf", model, slow=True)
    cpu = str(min(os.sched_getaffinity(0)))
    arguments = ("--mmproj", str(projector), "--ctx-size", "12288", "--parallel", "3", "--cpus", cpu)
    with live_server(*arguments) as server:
        yield server


def named(server: LiveServer, name: str) -> psutil.Process:
    (found,) = [child for child in server.children() if child.name() == name]
    return found


class Stream(threading.Thread):
    """A stream of text that runs until it is told to end; `has_begun` says that some has come."""

    def __init__(self, server: LiveServer) -> None:
        super().__init__(daemon=True)
        self._url = f"{server.url}/v1/completions"
        self.has_begun, self.may_end = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        body = {"prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", self._url, json=body, timeout=DEADLINE_S, trust_env=False) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    self.has_begun.set()
                if self.may_end.is_set():
                    return


def ask(server: LiveServer, content: list[dict[str, Any]]) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=DEADLINE_S, trust_env=False)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def test_beside_streams_an_image_gets_its_share_of_the_cpu(server: LiveServer) -> None:
    streams = [Stream(server) for _ in range(N_STREAMS)]
    assert all(stream.has_begun.wait(DEADLINE_S) for stream in streams)
    processes = [named(server, name) for name in (worker.NAME, engine_process.NAME)]
    before = [one.cpu_times().user for one in processes]
    told = ask(server, [{"type": "image_url", "image_url": {"url": IMAGE}}, {"type": "text", "text": " What is it?"}])
    encoder_s, engine_s = (one.cpu_times().user - begun for one, begun in zip(processes, before, strict=True))
    assert all(stream.is_alive() for stream in streams)
    for stream in streams:
        stream.may_end.set()
    assert told["usage"]["prompt_tokens_details"]["image_tokens"] == SIDE * SIDE
    # A third while it encodes; then the engine reads its rows. Starved it had a tenth, and streams that had stopped
    # meanwhile would leave it nearly all.
    assert 0.15 < encoder_s / (encoder_s + engine_s) < 0.6
