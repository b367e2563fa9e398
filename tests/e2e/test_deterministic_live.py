"""Deterministic requests to a real model: the same text beside any load, from any cache, by another engine; replay."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.programs.live_server import ROOT, LiveServer

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(900)]

WAIT_S = 300.0
LIGHTHOUSE = "The history of the lighthouse begins " + "when the sea was calm and the ships were few, " * 12
GREEDY = {"prompt": LIGHTHOUSE, "max_tokens": 16, "temperature": 0}
DRAWN = {"prompt": LIGHTHOUSE + "and", "max_tokens": 16, "temperature": 0.9, "top_p": 0.9, "seed": 11}
WORDS = ["sun", "moon", "tree", "water", "stone", "house", "road", "winter", "letter", "garden"]
ARGUMENTS = ("--parallel", "17", "--ctx-size", "5000")
"""294 tokens for each slot, which llama.cpp rounds up to 512."""


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    live = LiveServer(*ARGUMENTS)
    try:
        live.wait_ready()
        yield live
    finally:
        live.stop()


def ask(server: LiveServer, body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a deterministic completion."""
    sent = {**body, "deterministic": True}
    response = httpx.post(f"{server.url}/v1/completions", json=sent, timeout=WAIT_S, trust_env=False)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def tokens(answer: dict[str, Any]) -> list[int]:
    found: list[int] = answer["receipt"]["choices"][0]["tokens"]
    return found


@pytest.fixture(scope="module")
def quiet(server: LiveServer) -> list[list[int]]:
    """What both requests say while nobody else is served, and nothing is cached."""
    found = [tokens(ask(server, body)) for body in (GREEDY, DRAWN)]
    assert [len(one) for one in found] == [16, 16]
    return found


@contextlib.contextmanager
def load(server: LiveServer, n_streams: int) -> Iterator[None]:
    """So many streams of random texts, one after the other, until the end."""
    is_over = threading.Event()

    def run(seed: int) -> None:
        source = random.Random(seed)
        with httpx.Client(timeout=WAIT_S, trust_env=False) as client:
            while not is_over.is_set():
                prompt = " ".join(source.choices(WORDS, k=source.randint(3, 90)))
                body = {"prompt": prompt, "max_tokens": source.randint(5, 40), "temperature": 1.0}
                client.post(f"{server.url}/v1/completions", json=body)

    threads = [threading.Thread(target=run, args=(100 * n_streams + i,)) for i in range(n_streams)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("n_streams", [1, 4, 16])
def test_the_text_is_the_same_beside_random_streams(server: LiveServer, quiet: list[list[int]], n_streams: int) -> None:
    with load(server, n_streams):
        deadline_s = time.monotonic() + WAIT_S
        while server.n_running() == 0 and time.monotonic() < deadline_s:
            time.sleep(0.02)
        answers = [ask(server, body) for body in (GREEDY, DRAWN)]
    assert [tokens(answer) for answer in answers] == quiet
    # From the cache of those before, in whole chunks.
    assert all(answer["usage"]["prompt_tokens_details"]["cached_tokens"] % 64 == 0 for answer in answers)


def test_a_warm_cache_says_the_same_from_slots_and_from_ram(server: LiveServer, quiet: list[list[int]]) -> None:
    assert [tokens(ask(server, body)) for body in (GREEDY, DRAWN)] == quiet
    warm = ask(server, GREEDY)
    assert tokens(warm) == quiet[0]
    assert warm["usage"]["prompt_tokens_details"]["cached_tokens"] >= 64
    for slot in range(17):
        httpx.post(f"{server.url}/slots/{slot}?action=erase", json={}, timeout=WAIT_S, trust_env=False)
    restored = ask(server, {**GREEDY, "explain_cache": True})
    assert tokens(restored) == quiet[0]
    assert restored["usage"]["prompt_tokens_details"]["cached_tokens"] % 64 == 0


def test_another_engine_says_the_same(server: LiveServer, quiet: list[list[int]]) -> None:
    server.engine.kill()
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(httpx.HTTPError, AssertionError):
            assert [tokens(ask(server, body)) for body in (GREEDY, DRAWN)] == quiet
            return
        time.sleep(0.2)
    raise AssertionError("the engine did not come back")


def replay(path: Path, *arguments: str) -> tuple[int, list[str]]:
    """Exit code and lines of `ggufd replay`."""
    command = [sys.executable, "-m", "ggufd", "replay", str(path), *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S, env={**os.environ})
    return run.returncode, (run.stdout + run.stderr).splitlines()


def test_a_receipt_is_replayed_against_a_server(server: LiveServer, quiet: list[list[int]], tmp_path: Path) -> None:
    answer, path = ask(server, DRAWN), tmp_path / "RECEIPT.json"
    path.write_text(json.dumps(answer))
    assert replay(path, "--url", server.url) == (0, ["same: 16 tokens"])
    forged = answer["receipt"]
    forged["choices"][0]["tokens"][9] += 1
    path.write_text(json.dumps(forged))
    code, lines = replay(path, "--url", f"{server.url}/v1")
    assert code == 3
    assert lines[:2] == [
        "another text, by the same model, settings, hardware and build",
        "choice 0 parts at token 9",
    ]
    assert [line.split()[0] for line in lines[2:]] == ["then:", "now:"]
    forged["computed_by"]["settings"]["n_threads"] = 5
    path.write_text(json.dumps(forged))
    code, lines = replay(path, "--url", server.url)
    assert (code, lines[0]) == (4, "other settings, which promises nothing")
    assert lines[1] == "  settings.n_threads: 5 then, 1 now"


def test_a_receipt_is_replayed_by_a_server_that_is_started_for_it(
    server: LiveServer, quiet: list[list[int]], tmp_path: Path
) -> None:
    path = tmp_path / "RECEIPT.json"
    path.write_text(json.dumps(ask(server, DRAWN)["receipt"]))
    assert replay(path) == (0, ["same: 16 tokens"])
    code, lines = replay(path, "--model", str(tmp_path / "nothing.gguf"))
    assert code == 1
    assert "the server that was started ended with 1" in lines[0]
