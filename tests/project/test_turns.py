"""Tests that go by the clock run alone, and wait for at most one test of each other worker."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.turns import Turns

WAIT_S = 30
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no such locks")


@pytest.fixture
def door(tmp_path: Path) -> Path:
    return tmp_path / "door"


@pytest.fixture
def workers(tmp_path: Path, door: Path) -> Iterator[list[Turns]]:
    room = tmp_path / "room"
    room.touch()
    door.touch()
    made = [Turns(room, door) for _ in range(3)]
    yield made
    for one in made:
        one.close()


class Running(threading.Thread):
    """A test of another worker: `begun` is set inside of its turn, which lasts until `end`."""

    def __init__(self, turns: Turns, *, is_alone: bool) -> None:
        super().__init__(daemon=True)
        self._turns, self._is_alone = turns, is_alone
        self.begun, self._ended = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        with self._turns.turn(is_alone=self._is_alone):
            self.begun.set()
            assert self._ended.wait(WAIT_S)

    def end(self) -> None:
        self._ended.set()
        self.join(WAIT_S)


def wait_closed(door: Path) -> None:
    """Until somebody has the door."""
    import fcntl

    deadline = time.monotonic() + WAIT_S
    with door.open("rb") as file:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            fcntl.flock(file, fcntl.LOCK_UN)
            time.sleep(0.001)
    raise AssertionError("the door is open")


def test_usual_tests_run_beside_each_other(workers: list[Turns]) -> None:
    running = [Running(turns, is_alone=False) for turns in workers]
    assert all(one.begun.wait(WAIT_S) for one in running)
    for one in running:
        one.end()


def test_a_timed_one_waits_for_those_that_run_and_nobody_comes_before_it(workers: list[Turns], door: Path) -> None:
    usual = Running(workers[0], is_alone=False)
    assert usual.begun.wait(WAIT_S)
    timed = Running(workers[1], is_alone=True)
    wait_closed(door)
    assert not timed.begun.is_set()
    late = Running(workers[2], is_alone=False)
    assert not late.begun.wait(0.1)
    usual.end()
    assert timed.begun.wait(WAIT_S)
    assert not late.begun.wait(0.1)
    timed.end()
    assert late.begun.wait(WAIT_S)
    late.end()
