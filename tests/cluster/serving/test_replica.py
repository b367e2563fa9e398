"""A replica around a fake server program: its settings and token, its beats, its health, its way out."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ggufd.api.peers.gate import TOKEN_HEADER
from ggufd.cluster.directory.limits import AccountUse, UsedElsewhere
from ggufd.cluster.replicas import ReplicaLoad
from ggufd.cluster.serving import replica as module
from ggufd.cluster.serving.launch import Launch
from ggufd.cluster.serving.replica import EngineReplica
from ggufd.errors import StartupError
from tests.support.programs import fake_server

pytestmark = pytest.mark.e2e

WAIT_S = 60.0
TOKEN = "t" * 40
FAKE = (sys.executable, str(Path(fake_server.__file__)))


class Directory:
    """Every beat that came, and the answer to the next."""

    def __init__(self) -> None:
        self.beats: list[tuple[str, str, ReplicaLoad, dict[str, float]]] = []
        self.left: list[str] = []
        self.others: dict[str, float] = {}
        self.uses: list[dict[str, AccountUse]] = []
        self.used: dict[str, UsedElsewhere] = {}
        self.is_gone = False

    async def beat(
        self, replica_id: str, url: str, load: ReplicaLoad, served: Mapping[str, float], uses: Mapping[str, AccountUse]
    ) -> tuple[Mapping[str, float], Mapping[str, UsedElsewhere]]:
        if self.is_gone:
            raise ConnectionError("gone")
        self.beats.append((replica_id, url, load, dict(served)))
        self.uses.append(dict(uses))
        return self.others, self.used

    async def leave(self, replica_id: str) -> None:
        self.left.append(replica_id)


class Moves:
    """What was asked of a handover, and in which state the directory was then."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self.done: list[tuple[str, str, bool]] = []

    async def welcome(self, replica_id: str, url: str) -> None:
        self.done.append(("welcome", url, bool(self._directory.beats)))

    async def part(self, replica_id: str, url: str) -> None:
        self.done.append(("part", url, self._directory.beats[-1][2].is_draining))
        raise OSError("nobody takes them")

    async def relieve(self, replica_id: str, url: str) -> None:
        self.done.append(("relieve", url, False))


def launch(model: str = "fake", **changes: Any) -> Launch:
    return Launch({"model": {"model": model}}, TOKEN, program=FAKE, **changes)


@asynccontextmanager
async def running(one: EngineReplica) -> AsyncIterator[EngineReplica]:
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


async def ask(one: EngineReplica, method: str = "GET", **given: Any) -> Any:
    async with (
        aiohttp.ClientSession(headers={TOKEN_HEADER: TOKEN}) as session,
        session.request(method, f"{one.url}/fake", **given) as response,
    ):
        assert response.status == 200
        return await response.json()


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(int(WAIT_S / 0.02)):
        if holds():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it does not come")


def _modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.glob("**/*")}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.05)


async def test_a_replica_tells_its_address_and_load() -> None:
    directory = Directory()
    async with running(EngineReplica("r1", launch(), directory)) as one:
        name, url, load, served = directory.beats[0]
        assert (name, url, served) == ("r1", one.url, {})
        assert load == ReplicaLoad(n_slots=4, prefill_tok_s=100.0, kv_used=0.25)
        await one.check()
    assert directory.beats[-1][2].is_draining
    assert directory.left == ["r1"]


async def test_its_server_has_the_settings_the_folder_and_no_variables_of_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GGUFD_THREADS", "7")
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "7")
    monkeypatch.setenv("LLAMA_API_KEY", "of this machine")
    monkeypatch.setenv("HF_TOKEN", "kept")
    async with running(EngineReplica("r1", launch(folder=str(tmp_path)), Directory())) as one:
        told = await ask(one)
    assert told["tables"] == {"model": {"model": "fake"}}
    assert told["cwd"] == str(tmp_path)
    assert {"GGUFD_THREADS", "LLAMA_ARG_CTX_SIZE", "LLAMA_API_KEY"}.isdisjoint(told["environment"])
    assert told["environment"]["HF_TOKEN"] == "kept"


async def test_its_token_can_be_read_by_nobody_else_and_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    async with running(EngineReplica("r1", launch(), Directory())):
        modes = _modes(tmp_path)
        assert sorted(modes.values()) == [0o600, 0o600, 0o700]
        assert modes["token"] == 0o600
    assert _modes(tmp_path) == {}


async def test_what_others_served_reaches_the_server() -> None:
    directory = Directory()
    async with running(EngineReplica("r1", launch(), directory)) as one:
        await ask(one, "POST", json={"served": {"ann": 5}})
        await until(lambda: directory.beats[-1][3] == {"ann": 5})
        directory.others = {"bob": 7.0}
        n_beats = len(directory.beats)
        await until(lambda: len(directory.beats) > n_beats + 1)
        assert {"bob": 7.0} in (await ask(one))["told"]


async def test_what_counts_by_limits_elsewhere_reaches_the_server_until_it_is_over() -> None:
    directory = Directory()
    async with running(EngineReplica("r1", launch(), directory)) as one:
        own = {"used_s": 2.5, "waiting": 1, "running": 2, "queued": 3, "max_running": 4}
        await ask(one, "POST", json={"limits": {"ann": own}})
        await until(lambda: directory.uses[-1] == {"ann": AccountUse(2.5, 1, 2, 3, 4)})
        assert (await ask(one))["limits"] == [], "nothing to tell"
        directory.used = {"ann": UsedElsewhere(1.5, 2, 3)}
        n_beats = len(directory.beats)
        await until(lambda: len(directory.beats) > n_beats + 1)
        assert {"ann": {"used_s": 1.5, "waiting": 2, "running": 3}} in (await ask(one))["limits"]
        directory.used = {}
        n_beats = len(directory.beats)
        await until(lambda: len(directory.beats) > n_beats + 3)
        told = (await ask(one))["limits"]
        assert told[-1] == {}
        assert told.count({}) == 1, "once is enough"


async def test_a_directory_that_is_gone_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    directory = Directory()
    directory.is_gone = True
    async with running(EngineReplica("r1", launch(), directory)) as one:
        await one.check()
        await asyncio.sleep(0.3)
        assert [record.getMessage() for record in caplog.records] == ["replica r1 cannot tell its load: gone"]
        directory.is_gone = False
        await until(lambda: len(directory.beats) > 0)


async def test_a_server_that_cannot_start_is_told_in_its_own_words() -> None:
    one = EngineReplica("r1", launch("cannot"), Directory())
    with pytest.raises(StartupError, match=r"ended with 1: ggufd: cannot.gguf: no such file"):
        await one.start()
    await one.stop()


async def test_a_server_that_was_killed_fails_the_check() -> None:
    async with running(EngineReplica("r1", launch(), Directory())) as one:
        os.kill(one.pid, signal.SIGKILL)
        await until(lambda: one.exit_code is not None)
        with pytest.raises(StartupError, match="the server ended with -9"):
            await one.check()


async def test_a_server_that_is_not_alive_fails_the_check() -> None:
    async with running(EngineReplica("r1", launch(), Directory())) as one:
        await ask(one, "POST", json={"is_alive": False})
        with pytest.raises(StartupError, match="its probe answers 503"):
            await one.check()


async def test_a_server_that_ends_lets_its_streams_finish() -> None:
    directory = Directory()
    one = EngineReplica("r1", launch(), directory, drain_s=WAIT_S)
    await one.start()
    async with (
        aiohttp.ClientSession(headers={TOKEN_HEADER: TOKEN}) as session,
        session.post(f"{one.url}/v1/chat/completions", json={}) as response,
    ):
        await response.content.readany()
        ending = asyncio.create_task(one.stop())
        rest = await response.content.read()
    await ending
    assert rest.endswith(b"data: [DONE]\n\n")
    assert directory.left == ["r1"]


async def test_a_server_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_END_S", 0.1)
    one = EngineReplica("r1", launch("deaf"), Directory(), drain_s=0)
    await one.start()
    await one.stop()
    assert one.exit_code == -signal.SIGKILL


async def test_a_server_that_hangs_fails_the_check_and_is_killed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It heeds no SIGTERM and hands nothing over, and the one that replaces it may need its memory."""
    monkeypatch.setattr(module, "_CALL_S", 0.5)
    directory = Directory()
    moves = Moves(directory)
    one = EngineReplica("r1", launch(), directory, moves, drain_s=WAIT_S)
    await one.start()
    os.kill(one.pid, signal.SIGSTOP)
    with pytest.raises(StartupError, match="the server gives no answer: TimeoutError"):
        await one.check()
    began_s = time.monotonic()
    await one.stop()
    assert time.monotonic() - began_s < WAIT_S / 2
    assert one.exit_code == -signal.SIGKILL
    assert [what for what, *_ in moves.done] == ["welcome"]
    assert directory.left == ["r1"]


async def test_a_server_that_answers_again_is_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CALL_S", 3.0)
    directory = Directory()
    moves = Moves(directory)
    one = EngineReplica("r1", launch(), directory, moves, drain_s=WAIT_S)
    await one.start()
    os.kill(one.pid, signal.SIGSTOP)
    with pytest.raises(StartupError, match="gives no answer"):
        await one.check()
    os.kill(one.pid, signal.SIGCONT)
    await one.stop()
    assert one.exit_code == 0
    assert [what for what, *_ in moves.done] == ["welcome", "part"]


async def test_a_replica_where_requests_wait_for_long_copies_chats_to_others_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = Directory()
    moves = Moves(directory)
    async with running(EngineReplica("r1", launch(), directory, moves)) as one:
        await ask(one, "POST", json={"waiting": 3})
        await until(lambda: any(what == "relieve" for what, *_ in moves.done))
        n_beats = len(directory.beats)
        await until(lambda: len(directory.beats) > n_beats + 2 * module._BUSY_BEATS)
    assert [what for what, *_ in moves.done] == ["welcome", "relieve", "part"]


async def test_chats_are_handed_over_before_the_drain_and_no_failure_of_that_stops_it() -> None:
    directory = Directory()
    moves = Moves(directory)
    one = EngineReplica("r1", launch(), directory, moves)
    async with running(one):
        pass
    # The new one has its chats before it is routed to; the old one is not routed to any more when it gives them away.
    assert moves.done == [("welcome", one.url, False), ("part", one.url, True)]
    assert directory.left == ["r1"]
