"""Tests of a cluster on a real Ray, which `test_ray.py` runs in a network namespace; one Ray for all, in this order.

First fake programs, whose answers name the process and the settings that wrote them; then the command line with the
real server and the demo model, through the `openai` client.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import ray
from openai import OpenAI

from ggufd.api.peers.gate import TOKEN_HEADER
from ggufd.cluster.replicas import Replica
from ggufd.cluster.routing.hints import hint_of
from ggufd.cluster.routing.router import Router
from ggufd.cluster.serving.cluster import Cluster
from ggufd.cluster.serving.dashboard import Dashboard, RayError
from ggufd.cluster.serving.directory_actor import NAMESPACE, find
from ggufd.cluster.serving.loads import loads
from ggufd.cluster.serving.ray_head import RayHead
from ggufd.cluster.serving.serve_config import ClusterOptions
from tests.support.programs import fake_server

PORT = 8123
URL = f"http://127.0.0.1:{PORT}"
WAIT_S = 180.0
STEP_TIMEOUT_S = 10
FAKE = (sys.executable, str(Path(fake_server.__file__)))
OPTIONS = ClusterOptions(
    n_replicas=2,
    n_ingresses=2,
    port=PORT,
    tables={"model": {"model": "one"}, "server": {"drain_s": 20.0}},
    program=FAKE,
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


async def ask(client: httpx.AsyncClient, chat: str, is_heard: asyncio.Event | None = None, **fake: float) -> Answer:
    """The answer to a request, of which something came when `is_heard`; `fake` is what the fake program shall do."""
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": chat}], "fake": fake}
    text = ""
    async with client.stream("POST", f"{URL}/v1/chat/completions", json=body) as response:
        async for piece in response.aiter_text():
            text += piece
            if is_heard is not None:
                is_heard.set()
    return Answer(response.status_code, text)


async def answered_by(chat: str) -> int:
    """The process that answers now."""
    async with client() as http:
        return (await ask(http, chat)).pid


async def home(chat: str) -> int:
    """The process that a chat is answered by, once all ingresses have the same list of replicas."""
    before: set[int] = set()
    for _ in range(100):
        found = set(await asyncio.gather(*(answered_by(chat) for _ in range(4))))
        if len(found) == 1 and found == before:
            return found.pop()
        before = found
        # Lists are a second old, and asked for anew by the requests that find them so.
        await asyncio.sleep(1.5)
    raise AssertionError(f"{chat} is answered by several: {before}")


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=WAIT_S, trust_env=False)


@asynccontextmanager
async def load(n_clients: int, **fake: float) -> AsyncIterator[list[Answer | Exception]]:
    """Clients that ask one after the other all the while; their answers."""
    answers: list[Answer | Exception] = []
    is_over = asyncio.Event()

    async def one(number: int) -> None:
        async with client() as http:
            for turn in range(10_000):
                if is_over.is_set():
                    return
                try:
                    answers.append(await ask(http, f"chat {number} {turn}", **fake))
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


class Times:
    """What came when, printed for who measures it."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self.total_s = 0.0

    def add(self, what: str) -> None:
        self.total_s = time.monotonic() - self._began_s
        print(f"\n{self.total_s:6.1f} s: {what}")


def until(holds: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.2)


def fakes() -> list[psutil.Process]:
    """The programs that replicas have started."""
    return [one for one in psutil.process_iter() if FAKE[1] in _command(one)]


def pids(processes: Iterable[psutil.Process]) -> set[int]:
    return {one.pid for one in processes}


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


async def test_requests_are_answered_by_all_replicas_and_a_chat_by_one(cluster: Cluster) -> None:
    state = cluster.deploy(OPTIONS)
    assert (state.n_running, len(state.ingresses), state.options) == (2, 2, OPTIONS)
    async with client() as http:
        # Homes depend on the ids of the servers, which are drawn: of a few chats all may have one.
        answers = [await ask(http, f"chat {number}") for number in range(24)]
        again = [await ask(http, f"chat {number}") for number in range(24)]
    assert broken([*answers, *again]) == []
    assert [one.pid for one in answers] == [one.pid for one in again]
    assert {one.pid for one in answers} == pids(fakes())
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
    before = pids(fakes())
    async with load(3) as answers:
        state = await asyncio.to_thread(cluster.deploy, OPTIONS.scaled(3))
        assert state.n_running == 3
        assert before < pids(fakes())
        await asyncio.to_thread(cluster.deploy, OPTIONS)
        await asyncio.to_thread(until, lambda: len(fakes()) == 2, "the third replica does not end")
    assert broken(answers) == []
    assert len(answers) > 20


async def test_a_roll_fails_no_request_and_ends_with_the_new_settings(cluster: Cluster) -> None:
    before = pids(fakes())
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
    victim = await home("chat x")
    async with client() as http:
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


async def test_a_server_that_hangs_is_taken_out_and_replaced(cluster: Cluster) -> None:
    """Who heard nothing but comments is answered by the other; who heard more is told that it broke off."""
    victim = await home("chat x")
    heard, begun = asyncio.Event(), asyncio.Event()
    async with client() as http:
        commented = asyncio.create_task(ask(http, "chat x", heard, pid=victim, n_tokens=0))
        streamed = asyncio.create_task(ask(http, "chat x", begun, pid=victim, n_tokens=1))
        await asyncio.wait_for(asyncio.gather(heard.wait(), begun.wait()), WAIT_S)
        os.kill(victim, signal.SIGSTOP)
        told = Times()
        fresh = [asyncio.create_task(ask(http, f"chat {number}")) for number in range(8)]
        others = [await commented, *await asyncio.gather(*fresh)]
        told.add("answered elsewhere")
        cut = await streamed
        told.add("told that it broke off")
    assert broken(others) == []
    assert victim not in {one.pid for one in others}
    assert json.loads(cut.events[-1])["error"]["code"] == "replica_lost", cut.events
    assert cut.words[::2] == [str(victim)]
    await asyncio.to_thread(until, lambda: len(left := pids(fakes())) == 2 and victim not in left, "it is not replaced")
    told.add("killed, and another one there")
    await asyncio.to_thread(until, lambda: cluster.require().is_ready, "Serve does not have another one")
    told.add("ready")


async def test_an_actor_that_hangs_is_replaced_while_its_server_goes_on(cluster: Cluster) -> None:
    """Its server is not routed to any more, as nobody tells its load, and ends when its actor does."""
    server = await home("chat x")
    actor = psutil.Process(server).ppid()
    before = pids(fakes())
    is_heard = asyncio.Event()
    async with client() as http:
        running = asyncio.create_task(ask(http, "chat x", is_heard, pace_s=1.0))
        await asyncio.wait_for(is_heard.wait(), WAIT_S)
        async with load(2) as answers:
            os.kill(actor, signal.SIGSTOP)
            told = Times()
            await asyncio.to_thread(until, lambda: len(loads()) == 1, "it is still routed to")
            told.add("not routed to any more")
            await asyncio.to_thread(
                until, lambda: asyncio.run(answered_by("chat x")) != server, "an ingress still asks it"
            )
            await asyncio.to_thread(until, lambda: not before >= pids(fakes()), "there is no other in its place")
            told.add("another one is started")
        assert broken([await running, *answers]) == []
        assert running.result().pid == server
    # It would be killed when its time to drain is over, which is longer than this test should take.
    os.kill(actor, signal.SIGCONT)
    await asyncio.to_thread(until, lambda: server not in pids(fakes()), "its server does not end")
    await asyncio.to_thread(until, lambda: cluster.require().is_ready, "Serve does not have another one")
    assert len(fakes()) == 2


async def test_a_killed_ingress_cuts_its_streams_and_nothing_else(cluster: Cluster) -> None:
    before = cluster.require().ingresses
    async with load(4) as answers:
        await asyncio.to_thread(until, lambda: len(answers) > 4, "nothing is answered")
        killed = psutil.Process(before[0].pid)
        killed.kill()
        told = Times()
        # Until its sockets are closed the system takes connections for it, which nobody answers.
        await asyncio.to_thread(until, lambda: _has_ended(killed), "it does not end")
        n_before = len(answers)
        async with client() as http:
            after = await asyncio.gather(*(ask(http, f"chat {number}") for number in range(8)))
        told.add("others were answered")
        await asyncio.to_thread(until, lambda: _is_back(cluster, before[0].pid), "the ingress does not come back")
        told.add("the ingress is back")
    assert broken(list(after)) == []
    assert len(broken(answers[n_before:])) <= 4
    for one in answers:
        # A stream that had begun cannot go on elsewhere: its client sees that it is incomplete.
        is_cut = isinstance(one, httpx.RemoteProtocolError) or (isinstance(one, Answer) and one.status == 500)
        assert is_cut or (isinstance(one, Answer) and one.is_whole), one


def _has_ended(process: psutil.Process) -> bool:
    """Whether all of its threads have ended, though nobody may have waited for it yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE and len(os.listdir(f"/proc/{process.pid}/task")) == 1
    except (psutil.NoSuchProcess, FileNotFoundError):
        return True


def _is_back(cluster: Cluster, killed: int) -> bool:
    state = cluster.require()
    return state.is_ready and killed not in {one.pid for one in state.ingresses}


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


async def test_servers_come_and_go_with_the_load_at_their_pace(cluster: Cluster) -> None:
    options = replace(cluster.require().options, n_replicas=1, max_replicas=2, shrink_after_s=10.0)
    async with load(1) as few:
        told = Times()
        await asyncio.to_thread(cluster.deploy, options)
        # Serve rolls them when they begin to scale by themselves.
        both = pids(fakes())
        await asyncio.to_thread(until, lambda: len(fakes()) == 1, "there are still two for one client")
        told.add("one of two has ended")
        assert told.total_s >= options.shrink_after_s
        (left,) = pids(fakes())
        assert left in both
        told = Times()
        async with load(8, pace_s=0.1) as many:
            await asyncio.to_thread(until, lambda: len(loads()) == 2, "there is no second one for nine clients")
            told.add("a second one answers")
    assert broken([*few, *many]) == []
    assert left in pids(fakes())


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
    flags += ["--step-timeout-s", f"{STEP_TIMEOUT_S}"]
    return command("serve", "--replicas", "2", "--port", str(PORT), *flags)


def test_the_command_shows_address_and_replicas(served: str) -> None:
    assert "ggufd cluster is ready" in served
    assert f"{URL}/v1" in served
    assert served.count("127.0.0.1") >= 3
    assert "0 of 2" in served
    assert "2 of 2 replicas are ready" in command("status")


def test_more_of_the_prompts_is_cached_than_behind_plain_serve(served: str, cluster: Cluster, tmp_path: Path) -> None:
    """Of nine later turns at least one goes to a server that has not seen the turn before, where chance decides."""
    before = cluster.require()
    load = ["--chats", "3", "--turns", "4", "--clients", "2", "--opening", "60", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "ggufd", "bench", "cluster", *load, "--json", str(tmp_path / "found.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    rows = {row["quantity"]: row["medians"] for row in json.loads((tmp_path / "found.json").read_text())["results"]}
    assert rows["requests failed"] == [0.0, 0.0]
    assert min(rows["requests completed"] + rows["TTFT, p50"]) > 0
    ours, plain = rows["the same, after first turns"]
    assert 0 < plain < ours < 100
    after = cluster.require()
    assert (after.replicas, after.n_running) == (before.replicas, 2)
    until(lambda: _n_servers() == 2, "those behind plain Serve do not end")


def _n_servers() -> int:
    """Programs that replicas have started, without their own processes, which have the same command line."""
    servers = {one.pid: one for one in psutil.process_iter() if {"ggufd", "serve", "--config"} <= set(_command(one))}
    return sum(_parent(one) not in servers for one in servers.values())


def _parent(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.Error:
        return 0


@pytest.fixture
def openai() -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{URL}/v1", api_key="none", timeout=WAIT_S, max_retries=0) as client:
        yield client


class Chat:
    """A conversation whose turns say how many tokens of their prompt had to be computed; long enough to be kept."""

    def __init__(self, client: OpenAI, opening: str) -> None:
        self._client = client
        self._messages: list[Any] = [{"role": "user", "content": opening * 40}]

    @property
    def digest(self) -> bytes:
        """What the ingress knows it by."""
        body = json.dumps({"messages": self._messages}).encode()
        hint = hint_of("POST", "/v1/chat/completions", {"authorization": f"Bearer {self._client.api_key}"}, body)
        assert hint is not None
        return hint.chat

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


NAMES = ("Aa", "Bergen", "Calais", "Delft", "Eupen", "Fulda", "Ghent", "Husum")


def chats_by_home(openai: OpenAI, opening: str) -> dict[str, list[Chat]]:
    """Chats by the replica where they are at home, as the router has it; one that has none is missing.

    All replicas are idle, and have said so: else a chat may be sent elsewhere.
    """
    until(lambda: [one.running + one.waiting for one in loads().values()] == [0, 0], "they do not become idle")
    replicas = [Replica(name, one.url) for name, one in loads().items()]
    router, found = Router(), defaultdict(list)
    for name in NAMES:
        chat = Chat(openai, opening.format(name))
        home = router.home(chat.digest, replicas)
        assert home is not None
        found[home.id].append(chat)
    return found


async def stream_of(replica: str, is_heard: asyncio.Event | None = None) -> str:
    """A stream of many tokens at a replica: all of it, and `is_heard` once there is one."""
    body = {"messages": [{"role": "user", "content": "Count to a million."}], "stream": True, "ignore_eos": True}
    text = ""
    async with (
        client() as http,
        http.stream(
            "POST", f"{URL}/v1/chat/completions", params={"replica": replica}, json={**body, "max_tokens": 900}
        ) as response,
    ):
        assert response.status_code == 200
        async for piece in response.aiter_text():
            text += piece
            if is_heard is not None and '"content":' in piece:
                is_heard.set()
    return text


def cluster_token() -> str:
    """What the replicas know the cluster by."""
    ray.init(address="auto", namespace=NAMESPACE, log_to_driver=False, logging_level=logging.CRITICAL)
    try:
        return str(ray.get(find().token.remote(), timeout=WAIT_S))
    finally:
        ray.shutdown()


def kept_at(url: str, token: str, *, is_saved: bool = False) -> set[str]:
    """Digests of the chats that a replica has on disk; with `is_saved` what it has in memory is written there first."""
    with httpx.Client(base_url=url, headers={TOKEN_HEADER: token}, timeout=WAIT_S, trust_env=False) as http:
        if is_saved:
            assert http.post("/peers/chats/save", json={"timeout_s": WAIT_S / 2}).json()["left"] == 0
        return {one["chat"] for one in http.get("/peers/chats").json()["data"]}


async def test_a_replica_with_too_much_to_do_hands_chats_over(served: str, openai: OpenAI) -> None:
    """While it is busy, their next turns are sent to the other, which computes the new message only."""
    at_home = await asyncio.to_thread(chats_by_home, openai, "Tell me of the river of {}. ")
    busy, chats = max(at_home.items(), key=lambda pair: len(pair[1]))
    urls = {name: one.url for name, one in loads().items()}
    other = next(url for name, url in urls.items() if name != busy)
    token = await asyncio.to_thread(cluster_token)
    assert min([await asyncio.to_thread(chat.turn) for chat in chats]) > 2 * N_NEW
    # One may have begun elsewhere, while the one before it was still told to run at home.
    there = await asyncio.to_thread(kept_at, urls[busy], token, is_saved=True)
    chats = [chat for chat in chats if chat.digest.hex() in there]
    assert chats
    streams = [asyncio.create_task(stream_of(busy)) for _ in range(6)]
    try:
        told = Times()
        wanted = {chat.digest.hex() for chat in chats}
        await asyncio.to_thread(until, lambda: wanted <= kept_at(other, token), "the chats are not copied")
        told.add("chats are copied")
        new = [await asyncio.to_thread(chat.turn) for chat in chats]
        told.add("their next turns are answered")
        assert not all(one.done() for one in streams)
    finally:
        for one in streams:
            one.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
    assert max(new) <= N_NEW, new
    assert re.search(rf"replica {busy} was relieved of \d+ chats", actor_logs())


def actor_logs() -> str:
    """What Ray keeps of the actors' standard error."""
    return "".join(one.read_text() for one in Path("/tmp/ray/session_latest/logs").glob("worker-*.err"))


def engine_of(cluster: Cluster, replica: str) -> psutil.Process:
    """The process of a replica that computes."""
    (actor,) = [row.pid for row in cluster.require().replicas if row.replica_id == replica]
    (server,) = [one for one in psutil.Process(actor).children() if "serve" in _command(one)]
    return max(server.children(), key=lambda one: one.memory_info().rss)


async def test_an_engine_that_hangs_is_restarted_by_its_server(served: str, cluster: Cluster, openai: OpenAI) -> None:
    # The other one may be too slow to be reached on a machine that stands still: then it is asked once more.
    patient = openai.with_options(max_retries=2)
    at_home = await asyncio.to_thread(chats_by_home, patient, "Tell me of the tower of {}. ")
    hanging, (chat, *_) = next(iter(at_home.items()))
    engine = engine_of(cluster, hanging)
    is_heard = asyncio.Event()
    stream = asyncio.create_task(stream_of(hanging, is_heard))
    await asyncio.wait_for(is_heard.wait(), WAIT_S)
    engine.suspend()
    told = Times()
    # Sent to the hanging one it is refused when its watchdog has found out; then, or at once, the other one is asked.
    assert await asyncio.to_thread(chat.turn) > N_NEW
    told.add("answered elsewhere")
    *_, last = (line for line in (await stream).splitlines() if line.startswith("data: {"))
    told.add("told that it broke off")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_down", last
    await asyncio.to_thread(until, lambda: not engine.is_running(), "it is not ended")
    await asyncio.to_thread(until, lambda: engine_of(cluster, hanging).pid != engine.pid, "there is no other")
    await asyncio.to_thread(until, _all_ready, "it does not serve again")
    told.add("serves again")


def _all_ready() -> bool:
    answer = httpx.get(f"{URL}/health", timeout=WAIT_S, trust_env=False)
    return answer.status_code == 200 and list(answer.json()["replicas"].values()) == ["ok"] * 2


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
