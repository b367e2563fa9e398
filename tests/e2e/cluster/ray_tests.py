"""Tests of a cluster on a real Ray, which `test_ray.py` runs in a network namespace; one Ray for all, in this order.

First fake programs, whose answers name the process and the settings that wrote them; then the command line with the
real server and the demo model, through the `openai` client.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from openai import OpenAI

from ggufd.cluster.serving.cluster import Cluster
from ggufd.cluster.serving.dashboard import Dashboard, RayError
from ggufd.cluster.serving.loads import loads
from ggufd.cluster.serving.ray_head import RayHead
from ggufd.cluster.serving.serve_config import ClusterOptions
from tests.support.programs import fake_server

PORT = 8123
URL = f"http://127.0.0.1:{PORT}"
WAIT_S = 180.0
FAKE = (sys.executable, str(Path(fake_server.__file__)))
OPTIONS = ClusterOptions(
    n_replicas=2, port=PORT, tables={"model": {"model": "one"}, "server": {"drain_s": 20.0}}, program=FAKE
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A Ray that runs, and no cluster yet. The command line that the last tests run ends it; else it is ended here."""
    # Several clusters of a machine would meet at Ray's ports. Here there is no other.
    dashboard, head = Dashboard(), RayHead()
    head.start(dashboard)
    try:
        yield Cluster(dashboard)
    finally:
        head.stop()


class Answer:
    """One stream: the process and the model of each token, and how it ended."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
        self.words: list[str] = []
        for event in self.events:
            if event != "[DONE]" and "choices" in (parsed := json.loads(event)):
                self.words += parsed["choices"][0]["delta"].get("content", "").split()

    @property
    def is_whole(self) -> bool:
        return self.status == 200 and self.events[-1:] == ["[DONE]"] and len(self.words) == 2 * fake_server.N_TOKENS

    @property
    def pid(self) -> int:
        assert len(set(self.words[::2])) == 1, self.words
        return int(self.words[0])

    @property
    def models(self) -> set[str]:
        return set(self.words[1::2])


async def ask(client: httpx.AsyncClient, chat: str) -> Answer:
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": chat}]}
    response = await client.post(f"{URL}/v1/chat/completions", json=body)
    return Answer(response.status_code, response.text)


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=WAIT_S, trust_env=False)


@asynccontextmanager
async def load(n_clients: int) -> AsyncIterator[list[Answer | Exception]]:
    """Clients that ask one after the other all the while; their answers."""
    answers: list[Answer | Exception] = []
    is_over = asyncio.Event()

    async def one(number: int) -> None:
        async with client() as http:
            for turn in range(10_000):
                if is_over.is_set():
                    return
                try:
                    answers.append(await ask(http, f"chat {number} {turn}"))
                except httpx.HTTPError as error:
                    answers.append(error)

    clients = [asyncio.create_task(one(number)) for number in range(n_clients)]
    try:
        yield answers
    finally:
        is_over.set()
        await asyncio.gather(*clients)


def broken(answers: list[Answer | Exception]) -> list[Any]:
    return [
        (one.status, one.events[-2:]) if isinstance(one, Answer) else repr(one)
        for one in answers
        if not (isinstance(one, Answer) and one.is_whole)
    ]


def until(holds: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.2)


def fakes() -> list[psutil.Process]:
    """The programs that replicas have started."""
    return [one for one in psutil.process_iter() if FAKE[1] in _command(one)]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


async def test_requests_are_answered_by_all_replicas_and_a_chat_by_one(cluster: Cluster) -> None:
    state = cluster.deploy(OPTIONS)
    assert (state.n_running, len(state.ingresses), state.options) == (2, 1, OPTIONS)
    async with client() as http:
        answers = [await ask(http, f"chat {number}") for number in range(8)]
        again = [await ask(http, f"chat {number}") for number in range(8)]
    assert broken([*answers, *again]) == []
    assert [one.pid for one in answers] == [one.pid for one in again]
    assert {one.pid for one in answers} == {one.pid for one in fakes()}
    told = loads()
    assert set(told) == {row.replica_id for row in state.replicas}
    assert {(one.n_slots, one.kv_used) for one in told.values()} == {(4, 0.25)}


async def test_strangers_get_nothing_from_replicas_and_nothing_of_the_cluster_from_its_address(
    cluster: Cluster,
) -> None:
    async with client() as http:
        for one in loads().values():
            assert (await http.get(f"{one.url}/v1/models")).status_code == 401
        for path in ("/peers/load", "/peers/served"):
            answer = await http.get(URL + path)
            assert answer.status_code == 404
            assert len(answer.headers.get_list("x-request-id")) == 1


async def test_scaling_fails_no_request_and_leaves_running_replicas_alone(cluster: Cluster) -> None:
    before = {one.pid for one in fakes()}
    async with load(3) as answers:
        state = await asyncio.to_thread(cluster.deploy, OPTIONS.scaled(3))
        assert state.n_running == 3
        assert before < {one.pid for one in fakes()}
        await asyncio.to_thread(cluster.deploy, OPTIONS)
        await asyncio.to_thread(until, lambda: len(fakes()) == 2, "the third replica does not end")
    assert broken(answers) == []
    assert len(answers) > 20


async def test_a_roll_fails_no_request_and_ends_with_the_new_settings(cluster: Cluster) -> None:
    before = {one.pid for one in fakes()}
    options = OPTIONS.rolled({**(OPTIONS.tables or {}), "model": {"model": "two"}}, "")
    async with load(3) as answers:
        await asyncio.to_thread(cluster.deploy, options)
        async with client() as http:
            assert (await ask(http, "after the roll")).models == {"two"}
    assert broken(answers) == []
    assert before.isdisjoint(one.pid for one in fakes())
    models = Counter(next(iter(one.models)) for one in answers if isinstance(one, Answer))
    assert set(models) == {"one", "two"}


async def test_a_killed_server_ends_its_streams_with_an_error_and_comes_back(cluster: Cluster) -> None:
    async with client() as http:
        victim = (await ask(http, "chat x")).pid
        running = asyncio.create_task(ask(http, "chat x"))
        await asyncio.sleep(0.15)
        os.kill(victim, signal.SIGKILL)
        cut = await running
        # Either nothing real had been sent, and another one answered; or it says what happened.
        if not cut.is_whole:
            assert "error" in json.loads(cut.events[-1]), cut.events[-2:]
        assert (await ask(http, "chat x")).is_whole
    await asyncio.to_thread(until, lambda: len(fakes()) == 2, "the replica does not come back")
    await asyncio.to_thread(until, lambda: cluster.require().is_ready, "Serve does not have it back")


async def test_a_killed_actor_takes_its_server_with_it_and_comes_back(cluster: Cluster) -> None:
    victim = cluster.require().replicas[0].pid
    (server,) = [one for one in psutil.Process(victim).children() if FAKE[1] in _command(one)]
    os.kill(victim, signal.SIGKILL)
    gone, _ = psutil.wait_procs([server], WAIT_S)
    assert gone
    async with client() as http:
        assert broken([await ask(http, f"chat {number}") for number in range(4)]) == []
    await asyncio.to_thread(until, lambda: len(fakes()) == 2, "the replica does not come back")
    await asyncio.to_thread(until, lambda: cluster.require().is_ready, "Serve does not have it back")


async def test_a_killed_directory_costs_no_request_and_knows_all_again(cluster: Cluster) -> None:
    (directory,) = [one for one in psutil.process_iter() if _command(one)[:1] == ["ray::DirectoryActor"]]
    async with load(2) as answers:
        directory.kill()
        await asyncio.to_thread(until, lambda: len(loads()) == 2, "the directory does not come back")
    assert broken(answers) == []


def test_settings_that_cannot_work_are_told_in_a_line_and_leave_the_others_running(cluster: Cluster) -> None:
    now = cluster.require().options
    with pytest.raises(RayError, match=r"the deployment failed: .*cannot\.gguf: no such file") as raised:
        cluster.deploy(now.rolled({"model": {"model": "cannot"}}, ""))
    assert "\n" not in raised.value.message
    assert fakes()
    assert cluster.deploy(replace(now, n_rolls=now.n_rolls + 2)).n_running == 2


def test_the_address_cannot_change_under_a_cluster(cluster: Cluster) -> None:
    with pytest.raises(RayError, match=f"already listens at 127.0.0.1, port {PORT}"):
        cluster.deploy(replace(OPTIONS, port=PORT + 1))


def test_all_servers_end_with_the_cluster(cluster: Cluster) -> None:
    assert cluster.remove()
    until(lambda: not fakes(), "there are still servers")
    assert cluster.state() is None


# --- the command line, with the real server ---------------------------------------------------------------------------


def command(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ggufd", "cluster", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def served(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two real servers, started by the command line; the address and what the command said."""
    flags = ["--parallel", "2", "--ctx-size", "2048", "--threads", "1", "--flash-attn", "on", "--drain-s", "30"]
    flags += ["--cache-ram", "256", "--cache-disk", "256", "--cache-disk-path", str(tmp_path_factory.mktemp("kept"))]
    return command("serve", "--replicas", "2", "--port", str(PORT), *flags)


def test_the_command_shows_address_and_replicas(served: str) -> None:
    assert "ggufd cluster is ready" in served
    assert f"{URL}/v1" in served
    assert served.count("127.0.0.1") >= 3
    assert "0 of 2" in served
    assert "2 of 2 replicas are ready" in command("status")


@pytest.fixture
def openai() -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{URL}/v1", api_key="none", timeout=WAIT_S, max_retries=0) as client:
        yield client


class Chat:
    """A conversation whose turns say how many tokens of their prompt had to be computed; long enough to be kept."""

    def __init__(self, client: OpenAI, opening: str) -> None:
        self._client = client
        self._messages: list[Any] = [{"role": "user", "content": opening * 40}]

    def turn(self) -> int:
        done = self._client.chat.completions.create(
            model="m", messages=self._messages, max_completion_tokens=12, temperature=0.0
        )
        assert done.usage is not None
        assert done.usage.prompt_tokens_details is not None
        said = {"role": "assistant", "content": done.choices[0].message.content}
        self._messages += [said, {"role": "user", "content": "And then?"}]
        return done.usage.prompt_tokens - (done.usage.prompt_tokens_details.cached_tokens or 0)


N_NEW = 30
"""Tokens of a turn at most that are not the history: an end of an answer, a question, and what opens an answer."""


def test_six_turns_of_a_chat_stay_warm(served: str, openai: OpenAI) -> None:
    chat = Chat(openai, "Tell me a story about a small boat. ")
    first, *others = [chat.turn() for _ in range(6)]
    assert first > 2 * N_NEW
    assert max(others) <= N_NEW, others


def test_rolling_real_servers_fails_nothing(served: str, openai: OpenAI) -> None:
    import threading

    failures: list[str] = []
    texts: list[str] = []
    is_over = threading.Event()

    def chat(number: int) -> None:
        while not is_over.is_set():
            try:
                stream = openai.chat.completions.create(
                    model="m",
                    messages=[{"role": "user", "content": f"Count to {number}."}],
                    max_completion_tokens=16,
                    stream=True,
                )
                chunks = list(stream)
                assert chunks[-1].choices[0].finish_reason in ("stop", "length")
                texts.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices))
            except Exception as error:
                failures.append(repr(error))

    threads = [threading.Thread(target=chat, args=(number,)) for number in (7, 8)]
    for one in threads:
        one.start()
    try:
        said = command("roll", "--alias", "renamed")
    finally:
        is_over.set()
        for one in threads:
            one.join(WAIT_S)
    assert failures == []
    assert len(texts) > 4
    assert all(texts)
    assert "2 of 2 replicas are ready" in said
    assert {model.id for model in openai.models.list()} == {"renamed"}


def test_a_replica_that_ends_hands_its_chats_over(served: str, openai: OpenAI) -> None:
    chats = [Chat(openai, f"Tell me of the town of {name}. ") for name in ("Aa", "Bergen", "Calais", "Delft")]
    assert min(chat.turn() for chat in chats) > 2 * N_NEW
    # Each of the two has some of them, as a chance of one in eight is the other way.
    assert "1 of 1 replicas are ready" in command("scale", "1")
    # Serve is ready before the one that ends has ended; who asks sooner is answered, and may have to compute it.
    until(lambda: len(loads()) == 1, "the other replica does not end")
    assert max(chat.turn() for chat in chats) <= N_NEW


def test_the_command_ends_all(served: str, openai: OpenAI) -> None:
    said = command("down")
    assert "The cluster has ended." in said
    assert "Ray has ended." in said
    assert "no Ray runs here" in command("down", code=1)
    left = [
        _command(one) for one in psutil.process_iter() if "ray" in " ".join(_command(one)) or "ggufd" in _command(one)
    ]
    assert [words for words in left if "pytest" not in words] == []
