"""The main loop of the engine's process: one message a step, nothing when there is nothing to do, and its ends."""

from __future__ import annotations

import importlib.abc
import itertools
import multiprocessing
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from ggufd.engine import process
from ggufd.engine.messages.config import EngineConfig
from ggufd.engine.messages.events import Admitted, Failed, Output
from ggufd.engine.messages.reports import LoadFailed, Pong, Stats
from ggufd.engine.messages.requests import Abort, GetStats, Ping, Shutdown
from ggufd.llama.params import ContextParams, ModelParams
from tests.support.fakes.fake_llama import Rig, make_engine, make_request

WAIT_S = 30.0


class Loop:
    """`serve` in a thread, over a pipe."""

    def __init__(self, rig: Rig, *, text_interval_s: float = 0.0) -> None:
        self.conn, theirs = multiprocessing.Pipe()
        self.ended: list[BaseException | None] = []
        self._thread = threading.Thread(target=self._run, args=(theirs, rig, text_interval_s), daemon=True)
        self._thread.start()

    def _run(self, conn: Connection, rig: Rig, text_interval_s: float) -> None:
        try:
            process.serve(conn, rig.engine, text_interval_s=text_interval_s)
            self.ended.append(None)
        except EOFError as error:
            self.ended.append(error)

    def receive(self) -> list[Any]:
        assert self.conn.poll(WAIT_S), "nothing was said"
        events = self.conn.recv()
        assert events, "an empty message"
        return events  # type: ignore[no-any-return]

    def wait(self) -> BaseException | None:
        self._thread.join(WAIT_S)
        return self.ended[0]

    def end(self) -> None:
        self.conn.send(Shutdown())
        assert self.wait() is None


@pytest.fixture
def rig() -> Rig:
    return make_engine(n_slots=2)


def test_every_step_is_one_message(rig: Rig) -> None:
    loop = Loop(rig)
    loop.conn.send(make_request(1, b"hello", max_tokens=5, ignore_eos=True))
    messages = [loop.receive() for _ in range(5)]
    assert isinstance(messages[0][0], Admitted)
    assert [sum(isinstance(event, Output) for event in message) for message in messages] == [1] * 5
    assert not loop.conn.poll(0.05)
    loop.end()


def texts_of(message: list[Any]) -> list[Output]:
    return [event for event in message if isinstance(event, Output)]


class TestQuickText:
    """A step of the rig takes 10.5 ms of its own clock, and next to nothing of the loop's."""

    def test_it_goes_together(self, rig: Rig) -> None:
        loop = Loop(rig, text_interval_s=WAIT_S)
        loop.conn.send(make_request(1, b"hello", max_tokens=50, ignore_eos=True))
        first, rest = loop.receive(), loop.receive()
        assert (len(texts_of(first)), len(texts_of(rest))) == (1, 49)
        assert texts_of(rest)[-1].finish is not None
        loop.end()

    def test_it_is_sent_when_the_next_would_come_too_late(self, rig: Rig) -> None:
        loop = Loop(rig, text_interval_s=0.01)
        loop.conn.send(make_request(1, b"hello", max_tokens=5, ignore_eos=True))
        assert [len(texts_of(loop.receive())) for _ in range(5)] == [1] * 5
        loop.end()

    def test_a_command_sends_what_waits(self, rig: Rig) -> None:
        decodes, has_ten, may_go_on = itertools.count(1), threading.Event(), threading.Event()

        def hold() -> None:
            if next(decodes) == 10:
                has_ten.set()
                assert may_go_on.wait(WAIT_S)

        rig.decoder.before_decode = hold
        loop = Loop(rig, text_interval_s=WAIT_S)
        loop.conn.send(make_request(1, b"hello", max_tokens=50, ignore_eos=True))
        assert len(texts_of(loop.receive())) == 1
        assert has_ten.wait(WAIT_S)
        loop.conn.send(Ping())
        may_go_on.set()
        *texts, pong = loop.receive()
        assert isinstance(pong, Pong)
        assert len(texts_of(texts)) == len(texts) == 9
        loop.end()


def test_an_idle_engine_waits_and_does_not_spin(rig: Rig) -> None:
    n_looks = 0

    class Looking:
        """Counts how often the loop asks whether there is work."""

        has_work = property(lambda self: look())

        def run_idle_maintenance(self) -> bool:
            """Nothing to do."""
            return False

        def close(self, timeout_s: float) -> None:
            """Nothing to keep."""

    def look() -> bool:
        nonlocal n_looks
        n_looks += 1
        return False

    ours, theirs = multiprocessing.Pipe()
    thread = threading.Thread(target=process.serve, args=(theirs, Looking()), daemon=True)
    thread.start()
    thread.join(0.1)
    assert n_looks <= 2
    ours.send(Shutdown())
    thread.join(WAIT_S)
    assert not thread.is_alive()


def test_an_engine_that_waits_for_a_grammar_does_not_spin(rig: Rig) -> None:
    n_steps = 0
    compiling = threading.Event()
    compiling.set()

    class Compiling:
        """Has work all the time, and nothing to do while `compiling`."""

        has_work = True
        is_preparing = property(lambda self: compiling.is_set())

        def step(self) -> list[Any]:
            nonlocal n_steps
            n_steps += 1
            return []

        def close(self, timeout_s: float) -> None:
            """Nothing to keep."""

    ours, theirs = multiprocessing.Pipe()
    thread = threading.Thread(target=process.serve, args=(theirs, Compiling()), daemon=True)
    thread.start()
    thread.join(0.2)
    assert 1 < n_steps <= 100
    compiling.clear()
    n_steps = 0
    thread.join(0.2)
    assert n_steps > 200
    ours.send(Shutdown())
    thread.join(WAIT_S)
    assert not thread.is_alive()


def test_what_is_refused_is_said_though_nothing_runs(rig: Rig) -> None:
    loop = Loop(rig)
    loop.conn.send(make_request(1, b""))
    (failed,) = loop.receive()
    assert isinstance(failed, Failed)
    loop.conn.send(Shutdown())
    loop.wait()


def test_stats_are_answered_when_idle_and_when_busy(rig: Rig) -> None:
    loop = Loop(rig)
    loop.conn.send(GetStats())
    (stats,) = loop.receive()
    assert isinstance(stats, Stats)
    assert stats.running == 0
    assert stats.resident_bytes > 1 << 20
    loop.conn.send(make_request(1, b"hello", max_tokens=None, ignore_eos=True))
    loop.receive()
    loop.conn.send(GetStats())
    answers: list[Stats] = []
    while not answers:
        answers += [event for event in loop.receive() if isinstance(event, Stats)]
    assert answers[0].running == 1
    loop.conn.send(Shutdown())
    loop.wait()


def test_a_ping_is_answered_when_idle_and_when_busy(rig: Rig) -> None:
    loop = Loop(rig)
    loop.conn.send(Ping())
    assert loop.receive() == [Pong()]
    loop.conn.send(make_request(1, b"hello", max_tokens=None, ignore_eos=True))
    loop.conn.send(Ping())
    while Pong() not in loop.receive():
        pass
    loop.conn.send(Shutdown())
    loop.wait()


def test_an_abort_ends_all_talk_of_its_request(rig: Rig) -> None:
    loop = Loop(rig)
    loop.conn.send(make_request(1, b"hello", max_tokens=None, ignore_eos=True))
    loop.receive()
    loop.conn.send(Abort(1))
    loop.conn.send(GetStats())
    events: list[Any] = []
    while not any(isinstance(event, Stats) for event in events):
        events = loop.receive()
    assert [event for event in events if not isinstance(event, Stats)] == []
    assert not loop.conn.poll(0.05)
    loop.conn.send(Shutdown())
    loop.wait()


def test_a_shutdown_drops_what_runs(rig: Rig) -> None:
    loop = Loop(rig)
    loop.conn.send(make_request(1, b"hello", max_tokens=None, ignore_eos=True))
    loop.end()


def test_the_loop_ends_with_its_connection(rig: Rig) -> None:
    loop = Loop(rig)
    loop.conn.close()
    assert isinstance(loop.wait(), EOFError)


def test_a_library_of_another_machine_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name == "llama_cpp":
                raise RuntimeError("Failed to load shared library 'libllama.so': GLIBC_2.38 not found")

    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    ours, theirs = multiprocessing.Pipe()
    process.main(theirs, EngineConfig(ModelParams("any.gguf"), ContextParams(n_ctx=256, n_slots=1)))
    assert ours.poll(WAIT_S)
    (event,) = ours.recv()
    assert isinstance(event, LoadFailed)
    assert event.message.startswith("llama-cpp-python cannot be loaded: Failed to load")
    assert "--force-reinstall" in event.message


@pytest.mark.usefixtures("quiet_log_afterwards")
def test_a_model_that_cannot_be_loaded_is_said_and_the_end(tmp_path: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    config = EngineConfig(ModelParams(str(tmp_path / "none.gguf")), ContextParams(n_ctx=256, n_slots=1))
    process.main(theirs, config)
    theirs.close()
    events: list[Any] = []
    while ours.poll(WAIT_S):
        try:
            events += ours.recv()
        except EOFError:
            break
    assert isinstance(events[-1], LoadFailed)
    assert "none.gguf" in events[-1].message
