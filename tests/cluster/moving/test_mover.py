"""Handing over, welcoming and relieving, between servers with fake engines and real folders."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from ggufd.cluster.moving.mover import ChatMover
from ggufd.cluster.replicas import Replica, ReplicaLoad
from ggufd.engine.kv_store import state_file, state_head
from ggufd.engine.kv_store.state_file import KeptState
from ggufd.engine.messages.config import DiskPlace
from ggufd.engine.messages.requests import EVERYBODYS
from tests.support.fakes.api_server import Served, serving
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.programs.live_server import free_port

TOKEN = "t" * 32


class Peer(NamedTuple):
    """A server with its folder, as the cluster knows it."""

    served: Served
    folder: Path
    replica: Replica

    def chats(self) -> set[str]:
        return {state_head.read_head(path).chat for path in self.folder.glob("*.npz")}


def put(folder: Path, home: str, number: int = 0) -> None:
    """A chat on disk whose home is the replica of that name."""
    tokens = array("i", range(number, number + 300))
    tokens[0] = ord(home)
    digest = state_head.digest_of("model", tokens, EVERYBODYS)
    kept = KeptState(tokens, np.ones(50_000, np.uint8), EVERYBODYS, "somebody", home.encode().hex().ljust(32, "0"))
    state_file.write(folder / f"{digest}.npz", kept, "model")


@contextmanager
def peers(folder: Path, *names: str, fingerprints: Sequence[str] = (), token: str = TOKEN) -> Iterator[list[Peer]]:
    with ExitStack() as stack:
        made = []
        for at, name in enumerate(names):
            place = folder / name
            place.mkdir(exist_ok=True)
            engine = FakeEngine()
            assert engine.ready is not None
            mark = fingerprints[at] if fingerprints else "model"
            engine.ready = replace(engine.ready, disk=DiskPlace(str(place), 1 << 30, mark), fingerprint=mark)
            served = stack.enter_context(serving(engine, peer_token=token))
            made.append(Peer(served, place, Replica(name, served.url)))
        yield made


class Fixed:
    """Replicas that are always there."""

    def __init__(self, *replicas: Replica) -> None:
        self._replicas = replicas

    async def all(self) -> Sequence[Replica]:
        return self._replicas


def home(chat: bytes, replicas: Sequence[Replica]) -> Replica | None:
    """The replica that the chat has the name of."""
    return next((one for one in replicas if one.id == chat.rstrip(b"\0").decode()), None)


def mover(*replicas: Replica, timeout_s: float = 30.0) -> ChatMover:
    return ChatMover(Fixed(*replicas), home, TOKEN, timeout_s)


def name_of(home: str) -> str:
    return home.encode().hex().ljust(32, "0")


async def test_a_draining_replica_hands_each_chat_to_its_next_home(tmp_path: Path) -> None:
    with peers(tmp_path, "a", "b", "c") as (a, b, c):
        put(a.folder, "b")
        put(a.folder, "c")
        put(a.folder, "d")
        a.served.engine.n_unsaved = 3
        moved = await mover(a.replica, b.replica, c.replica).part("a", a.replica.url)
        assert (moved.n_chats, moved.n_present, moved.failures) == (2, 0, {})
        assert (b.chats(), c.chats()) == ({name_of("b")}, {name_of("c")})
        assert a.served.engine.n_unsaved == 0
        assert len(b.served.engine.adopted) == 1
        again = await mover(a.replica, b.replica, c.replica).part("a", a.replica.url)
        assert (again.n_chats, again.n_present) == (0, 2)


async def test_what_runs_at_a_draining_replica_is_waited_for(tmp_path: Path) -> None:
    with peers(tmp_path, "a", "b") as (a, b):
        engine = a.served.engine
        engine.open.add(1)
        task = asyncio.create_task(mover(a.replica, b.replica).part("a", a.replica.url))
        await asyncio.sleep(0.3)
        assert not task.done()
        put(a.folder, "b")
        a.served.in_loop(lambda: engine.open.discard(1))
        assert (await task).n_chats == 1
        engine.open.add(1)
        started_s = time.monotonic()
        await mover(a.replica, b.replica, timeout_s=0.5).part("a", a.replica.url)
        assert time.monotonic() - started_s < 20


async def test_nothing_goes_to_replicas_that_drain_or_compute_otherwise(tmp_path: Path) -> None:
    with peers(tmp_path, "a", "b", "c", fingerprints=("model", "another", "model")) as (a, b, c):
        put(a.folder, "b")
        put(a.folder, "c")
        draining = replace(c.replica, load=ReplicaLoad(is_draining=True))
        moved = await mover(a.replica, b.replica, draining).part("a", a.replica.url)
        assert (moved.n_chats, b.chats(), c.chats()) == (0, set(), set())


async def test_a_new_replica_is_given_what_will_be_routed_to_it_and_no_more(tmp_path: Path) -> None:
    with peers(tmp_path, "a", "b", "n") as (a, b, new):
        put(a.folder, "n")
        put(b.folder, "n", number=1)
        put(b.folder, "n")
        put(b.folder, "a")
        moved = await mover(a.replica, b.replica).welcome("n", new.replica.url)
        assert (moved.n_chats, new.chats()) == (2, {name_of("n")})


async def test_an_overloaded_replica_shares_its_latest_chats_with_who_is_free(tmp_path: Path) -> None:
    with peers(tmp_path, "a", "b", "c") as (a, b, c):
        put(a.folder, "b")
        put(a.folder, "c")
        busy = replace(b.replica, load=ReplicaLoad(waiting=1))
        moved = await mover(a.replica, busy, c.replica).relieve("a", a.replica.url)
        assert (moved.n_chats, b.chats(), c.chats()) == (1, set(), {name_of("c")})


@pytest.mark.parametrize("what", ["gone", "another token"])
async def test_a_replica_that_does_not_answer_costs_its_own_chats(what: str, tmp_path: Path) -> None:
    gone = Replica("b", f"http://127.0.0.1:{free_port()}")
    token = TOKEN if what == "gone" else "another" * 6
    with peers(tmp_path, "a", "c") as (a, c), peers(tmp_path, "b", token=token) as (b,):
        put(a.folder, "b")
        put(a.folder, "c")
        other = gone if what == "gone" else b.replica
        moved = await mover(a.replica, other, c.replica).part("a", a.replica.url)
        assert (moved.n_chats, c.chats()) == (1, {name_of("c")})
        assert sum(moved.failures.values()) == 1
        moved = await mover(other, a.replica).part("b", other.url)
        assert moved.n_chats == 0
        assert moved.failures


async def test_without_anybody_else_nothing_happens(tmp_path: Path) -> None:
    with peers(tmp_path, "a") as (a,):
        put(a.folder, "b")
        assert (await mover(a.replica).part("a", a.replica.url)).n_chats == 0
        assert (await mover().welcome("a", a.replica.url)).n_chats == 0
