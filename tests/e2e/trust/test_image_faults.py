"""The encoder killed under a real server: its requests are answered all the same, or fail alone."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ggufd.images.encoder.worker import NAME
from tests.support.limits import ANSWER_S
from tests.support.models.image_files import PATCHES, patch_uri
from tests.support.models.projector_file import SLOW, write_projector
from tests.support.programs.live_server import LiveServer

pytestmark = pytest.mark.long

WORDS = tuple("abcdefgh")
SIDE = SLOW.image_size // SLOW.patch_size
QUESTION = " What did I say?"
DEADLINE_S = 180
LOADED_BYTES = 250 << 20
AT_WORK_S = 0.2


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    # A model in F32: of a quantised one the rows of an image and the words typed differ in their last bits.
    path = write_projector(tmp_path_factory.mktemp("eyes") / "mmproj.gguf", tiny_model, WORDS, slow=True)
    arguments = ("--model", str(tiny_model), "--mmproj", str(path), "--ctx-size", "8192", "--parallel", "4")
    server = LiveServer(*arguments, "--flash-attn", "on")
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


def pattern(seed: int) -> list[int]:
    """Words of an image, another one for each seed."""
    return [(row * 5 + row // 3 + seed) % len(WORDS) for row in range(SIDE * SIDE)]


def image_of(seed: int) -> list[dict[str, Any]]:
    url = patch_uri([PATCHES[i] for i in pattern(seed)], columns=SIDE)
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]


def typed(seed: int) -> str:
    return "".join(WORDS[i] for i in pattern(seed)) + QUESTION


def ask(server: LiveServer, content: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 12, "temperature": 0}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=DEADLINE_S, trust_env=False)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def metric(server: LiveServer, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics", trust_env=False, timeout=ANSWER_S).text.splitlines()
    return float(next(line.split()[-1] for line in lines if line.startswith(f"{name} ")))


def encoder_of(server: LiveServer, other_than: int = 0) -> psutil.Process:
    """The encoder; after a death the next one."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        for child in server.children():
            if child.pid != other_than and child.status() != psutil.STATUS_ZOMBIE and child.name() == NAME:
                return child
        time.sleep(0.02)
    raise AssertionError("there is no encoder")


def kill_at_work(encoder: psutil.Process) -> None:
    """Kill it when it has loaded the projector, and has used the processor for a while since."""
    wait_for(lambda: encoder.memory_info().rss > LOADED_BYTES)
    before = encoder.cpu_times().user
    wait_for(lambda: encoder.cpu_times().user > before + AT_WORK_S)
    os.kill(encoder.pid, signal.SIGKILL)


def wait_for(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Asking(threading.Thread):
    """A request that is answered while the test does something else."""

    def __init__(self, server: LiveServer, content: Any) -> None:
        super().__init__(daemon=True)
        self._server, self._content = server, content
        self._answer: httpx.Response | None = None
        self.start()

    def run(self) -> None:
        self._answer = ask(self._server, self._content)

    @property
    def answer(self) -> httpx.Response:
        self.join(DEADLINE_S)
        assert self._answer is not None
        return self._answer


class Streaming(threading.Thread):
    """A stream of text, and the events that came."""

    def __init__(self, server: LiveServer, n_tokens: int) -> None:
        super().__init__(daemon=True)
        self._url = f"{server.url}/v1/completions"
        self._body = {"prompt": "Once", "max_tokens": n_tokens, "ignore_eos": True, "stream": True}
        self.events: list[Any] = []
        self.start()

    def run(self) -> None:
        with httpx.stream("POST", self._url, json=self._body, timeout=DEADLINE_S, trust_env=False) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    self.events.append(json.loads(line.removeprefix("data: ")))


def test_an_image_whose_encoder_is_killed_is_answered_and_a_stream_beside_it_goes_on(server: LiveServer) -> None:
    encoder = encoder_of(server)
    exits = metric(server, "ggufd_image_encoder_exits_total")
    stream = Streaming(server, 60)
    asking = Asking(server, image_of(1))
    kill_at_work(encoder)
    said = text_of(asking.answer)
    stream.join(DEADLINE_S)
    assert not [event for event in stream.events if "error" in event]
    assert stream.events[-1]["choices"][0]["finish_reason"] == "length"
    assert metric(server, "ggufd_image_encoder_exits_total") == exits + 1
    assert said == text_of(ask(server, typed(1)))


def test_an_image_over_which_the_encoder_ends_twice_fails_alone(server: LiveServer) -> None:
    first = encoder_of(server)
    bad = Asking(server, image_of(2))
    kill_at_work(first)
    kill_at_work(encoder_of(server, first.pid))
    answer = bad.answer
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == (
        "The encoder ended twice while it worked on this image: signal SIGKILL."
    )
    assert httpx.get(f"{server.url}/health", trust_env=False, timeout=ANSWER_S).status_code == 200
    assert text_of(ask(server, image_of(3))) == text_of(ask(server, typed(3)))


def test_an_image_seen_before_is_not_encoded_in_another_chat(server: LiveServer) -> None:
    text_of(ask(server, image_of(4)))
    encoded = metric(server, 'ggufd_images_total{outcome="encoded"}')
    hits = metric(server, 'ggufd_images_total{outcome="hit"}')
    said = text_of(ask(server, [{"type": "text", "text": "Look:"}, *image_of(4)]))
    assert metric(server, 'ggufd_images_total{outcome="encoded"}') == encoded
    assert metric(server, 'ggufd_images_total{outcome="hit"}') > hits
    assert said == text_of(ask(server, f"Look:{typed(4)}"))


def test_an_image_whose_client_leaves_is_stopped(server: LiveServer) -> None:
    encoded = metric(server, 'ggufd_images_total{outcome="encoded"}')
    encoder = encoder_of(server)
    before = encoder.cpu_times().user
    body = {"messages": [{"role": "user", "content": image_of(5)}], "max_tokens": 1}
    with httpx.Client(trust_env=False, timeout=httpx.Timeout(DEADLINE_S, read=0.2)) as client:
        while encoder.cpu_times().user < before + 0.1:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{server.url}/v1/chat/completions", json=body)
    text_of(ask(server, image_of(6)))
    assert metric(server, 'ggufd_images_total{outcome="encoded"}') == encoded + 1
    assert encoder_of(server).pid == encoder.pid
