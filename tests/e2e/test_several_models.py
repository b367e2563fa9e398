"""Several models in the real server: swaps for requests, crashes and failures while swapping, chats that come back."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.fakes.api_client import error_of
from tests.support.models.tiny_model import write_tiny_model
from tests.support.programs.live_server import LiveServer, live_server

pytestmark = [pytest.mark.timeout(600), pytest.mark.long]

WAIT_S = 120.0
NAMES = ("tiny-a", "tiny-b", "tiny-c")
FLAGS = ("--ctx-size", "1024", "--parallel", "1", "--flash-attn", "off")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models that say different things, and one whose header is good and whose tensors are cut off."""
    models = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(NAMES):
        write_tiny_model(models / f"{name}.gguf", seed=seed)
    return models


@contextlib.contextmanager
def served(folder: Path, *flags: str) -> Iterator[tuple[LiveServer, httpx.Client]]:
    arguments = ("--models-dir", str(folder), *FLAGS, *flags)
    with live_server(*arguments) as server, client(server) as http:
        yield server, http


def client(server: LiveServer) -> httpx.Client:
    return httpx.Client(base_url=server.url, trust_env=False, timeout=WAIT_S)


def says(http: httpx.Client, model: str, **more: Any) -> tuple[str, str]:
    """The model that answered, and what it said."""
    body = {"model": model, "prompt": "Once", "max_tokens": 6, "temperature": 0, "ignore_eos": True, **more}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["model"], answer.json()["choices"][0]["text"]


def states(http: httpx.Client) -> dict[str, str]:
    return {one["id"]: one["status"]["value"] for one in http.get("/v1/models").json()["data"]}


def until(holds: Callable[[], bool], why: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, why
        time.sleep(0.05)


class TestSwaps:
    def test_each_model_answers_for_itself_and_other_names_mean_the_loaded_one(self, folder: Path) -> None:
        with served(folder, "--swap-after-s", "0") as (server, http):
            assert states(http) == {"tiny-a": "loaded", "tiny-b": "unloaded", "tiny-c": "unloaded"}
            first = {name: says(http, name) for name in NAMES}
            assert {name: model for name, (model, _) in first.items()} == {name: name for name in NAMES}
            assert len({text for _, text in first.values()}) == 3, "the models say the same: nothing is shown"
            for name in ("any", "gpt-4", "default", ""):
                assert says(http, name) == first["tiny-c"]
            assert states(http)["tiny-c"] == "loaded"
            assert says(http, "tiny-a.gguf") == first["tiny-a"]
            # The engine, the text process, and the tracker of their resources: nothing is left of the others.
            until(lambda: len(server.children()) <= 3, "processes of earlier models are left")

    def test_two_users_who_want_different_models_are_both_served(self, folder: Path) -> None:
        swap_after_s, lasts_s = 4.0, 40.0
        keys = ("--api-key", "ann-key,bob-key", "--swap-after-s", str(swap_after_s))
        with served(folder, *keys) as (server, _):
            texts: dict[str, set[tuple[str, str]]] = {"tiny-a": set(), "tiny-b": set()}
            counts = dict.fromkeys(texts, 0)
            ends_s = time.monotonic() + lasts_s

            def ask(model: str, key: str) -> None:
                with client(server) as http:
                    http.headers["Authorization"] = f"Bearer {key}"
                    while time.monotonic() < ends_s:
                        texts[model].add(says(http, model))
                        counts[model] += 1

            with ThreadPoolExecutor() as threads:
                for work in [threads.submit(ask, "tiny-a", "ann-key"), threads.submit(ask, "tiny-b", "bob-key")]:
                    work.result()
        assert {model: {name for name, _ in said} for model, said in texts.items()} == {
            "tiny-a": {"tiny-a"},
            "tiny-b": {"tiny-b"},
        }
        assert all(len(said) == 1 for said in texts.values()), "an answer of another model, or half of one"
        assert min(counts.values()) > 0
        n_swaps = sum("swapping to" in line for line in server.log)
        # Whoever came last is still served after the end.
        assert 2 <= n_swaps <= lasts_s / swap_after_s + 2

    def test_a_stream_ends_before_its_model_goes_and_the_next_is_told_of_its_wait(self, folder: Path) -> None:
        with served(folder, "--swap-after-s", "0") as (_, http):
            body = {"model": "tiny-a", "prompt": "Once", "max_tokens": 600, "stream": True, "ignore_eos": True}
            lines: list[str] = []
            begun = threading.Event()

            def read() -> None:
                with http.stream("POST", "/v1/completions", json=body) as reply:
                    for line in reply.iter_lines():
                        lines.append(line)
                        begun.set()

            reader = threading.Thread(target=read)
            reader.start()
            assert begun.wait(WAIT_S)
            chat = {"model": "tiny-b", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
            with http.stream(
                "POST", "/v1/chat/completions", json={**chat, "stream": True, "report_queue": True}
            ) as reply:
                told = [line for line in reply.iter_lines() if line]
            reader.join(WAIT_S)
            last = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")][-1]
            assert last["choices"][0]["finish_reason"] == "length", "the stream was cut"
            assert lines[-2] == "data: [DONE]"
            assert told[0].startswith(": queue position=1 eta_s=")
            assert "waiting for model tiny-b, " in told[0]
            assert json.loads(told[-2].removeprefix("data: "))["model"] == "tiny-b"

    def test_who_leaves_while_waiting_causes_no_swap(self, folder: Path) -> None:
        with served(folder, "--swap-after-s", "3") as (server, http):
            body = {"model": "tiny-a", "prompt": "Once", "max_tokens": 900, "ignore_eos": True, "stream": True}
            with http.stream("POST", "/v1/completions", json=body):
                with pytest.raises(httpx.ReadTimeout):
                    http.post("/v1/completions", json={"model": "tiny-b", "prompt": "x"}, timeout=0.5)
                until(lambda: http.get("/v1/queue").json()["waiting"] == 0, "who has left still waits")
            assert says(http, "any")[0] == "tiny-a"
            assert not [line for line in server.log if "swapping to" in line]


class TestFailures:
    def test_a_model_that_does_not_load_leaves_the_old_one(self, folder: Path, tmp_path: Path) -> None:
        models = tmp_path / "models"
        shutil.copytree(folder, models)
        with served(models, "--swap-after-s", "0", "--swap-retry-s", "3") as (server, http):
            first = says(http, "tiny-a")
            good = (models / "tiny-b.gguf").read_bytes()
            (models / "tiny-b.gguf").write_bytes(good[:-1000])
            error = error_of(http.post("/v1/completions", json={"model": "tiny-b", "prompt": "x"}), 503)
            assert error["code"] == "model_load_failed"
            assert "tiny-b.gguf" in error["message"]
            assert says(http, "tiny-a") == says(http, "any") == first
            status = http.get("/v1/models/tiny-b").json()["status"]
            assert status["failed"]
            again = http.post("/v1/completions", json={"model": "tiny-b", "prompt": "x"})
            assert "not tried again for" in error_of(again, 503)["message"]
            (models / "tiny-b.gguf").write_bytes(good)
            time.sleep(3)
            assert says(http, "tiny-b")[0] == "tiny-b"
            assert "Traceback" not in "".join(server.log)

    def test_an_engine_that_is_killed_while_it_loads(self, folder: Path) -> None:
        with served(folder, "--swap-after-s", "0", "--swap-retry-s", "1") as (server, http):
            first = says(http, "tiny-a")
            seen = {child.pid for child in server.children()}
            new: list[int] = []
            with ThreadPoolExecutor() as threads:
                asked = threads.submit(http.post, "/v1/completions", json={"model": "tiny-b", "prompt": "x"})
                # The text process comes first, then, when the old engine has gone, the engine.
                while len(new) < 2 and not asked.done():
                    new += [child.pid for child in server.children() if child.pid not in {*seen, *new}]
                    time.sleep(0.01)
                killed = len(new) > 1 and not asked.done()
                if killed:
                    psutil.Process(new[1]).kill()
                answer = asked.result()
            assert killed, "there was no engine to kill"
            error = error_of(answer, 503)
            assert error["code"] == "model_load_failed"
            assert "the engine process ended unexpectedly" in error["message"]
            until(lambda: "loading" not in states(http).values(), "the server does not come back")
            assert says(http, "tiny-a") == first
            time.sleep(1)
            assert says(http, "tiny-b")[0] == "tiny-b"
