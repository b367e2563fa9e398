"""What is sent arrives whole and in order, at once where there is room, and nobody waits for it."""

from __future__ import annotations

import itertools
import multiprocessing
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufd.processes.sender import Sender
from tests.support.examples import examples

LONG = b"x" * 3_000_000
"""Longer than what a pipe holds."""


class Line:
    """A sender and the other end of its pipe."""

    def __init__(self) -> None:
        self.ours, self.theirs = multiprocessing.Pipe()
        self.sender = Sender(self.ours, "test")

    def close(self) -> None:
        self.theirs.close()
        self.sender.close()
        self.ours.close()


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.close()


@pytest.mark.skipif(sys.platform == "win32", reason="its pipes cannot be asked for room")
def test_what_there_is_room_for_is_there_at_once(line: Line) -> None:
    for number in range(20):
        line.sender.send(number)
        assert line.theirs.poll(0)
        assert line.theirs.recv() == number


@settings(max_examples=examples(50))
@given(st.lists(st.tuples(st.sampled_from([0, 100, 50_000, 300_000]), st.booleans()), max_size=12))
def test_whatever_is_read_when_all_arrives_in_order(sent: list[tuple[int, bool]]) -> None:
    line = Line()
    seen: list[tuple[int, bytes]] = []
    for number, (size, is_reading) in enumerate(sent):
        line.sender.send((number, b"x" * size))
        if is_reading:
            seen.append(line.theirs.recv())
    seen += [line.theirs.recv() for _ in range(len(sent) - len(seen))]
    assert seen == [(number, b"x" * size) for number, (size, _) in enumerate(sent)]
    line.close()


def test_nobody_waits_for_one_who_does_not_read(line: Line) -> None:
    started_s = time.monotonic()
    for number in range(5):
        line.sender.send(LONG)
        line.sender.send(number)
    assert time.monotonic() - started_s < 5
    assert not line.sender._waiting.empty()
    assert [line.theirs.recv() for _ in range(10)] == [x for number in range(5) for x in (LONG, number)]


def test_those_who_send_from_several_threads_do_not_mix(line: Line) -> None:
    def send(who: int) -> None:
        for number in range(50):
            line.sender.send((who, number, b"x" * 10_000))

    threads = [threading.Thread(target=send, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    seen = [_head(line.theirs) for _ in range(200)]
    for thread in threads:
        thread.join()
    for who in range(4):
        assert [number for one, number in seen if one == who] == list(range(50))


def _head(conn: Connection) -> tuple[int, int]:
    who, number, _ = conn.recv()
    return who, number


def test_one_who_is_gone_is_sent_nothing_in_silence() -> None:
    line = Line()
    line.sender.send(LONG)
    line.theirs.close()
    for number in itertools.chain(range(3), [LONG]):
        line.sender.send(number)
    line.sender.close()
    line.sender.send("late")
    line.ours.close()
