"""Messages out of a pipe: on an event loop and on a thread, whole whatever pieces they come in."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import pickle
import struct
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.processes.receiver import Dispatch, FrameDecoder, frame, receive

WAIT_S = 30.0


def loops() -> Iterator[Callable[[], asyncio.AbstractEventLoop]]:
    """Python's own, and the one that the server runs on."""
    yield asyncio.new_event_loop
    with contextlib.suppress(ImportError):
        import uvloop

        yield uvloop.new_event_loop


def written(*messages: Any) -> bytes:
    """What `Connection.send` writes."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    data = b""
    with ours, theirs:
        for message in messages:
            theirs.send(message)
            data += os.read(ours.fileno(), 4096)
    return data


@given(
    messages=st.lists(st.one_of(st.none(), st.text(max_size=20), st.binary(max_size=300)), max_size=8), data=st.data()
)
def test_messages_are_whole_in_whatever_pieces_they_come(messages: list[Any], data: st.DataObject) -> None:
    rest, frames, seen = written(*messages), FrameDecoder(), []
    while rest:
        n = data.draw(st.integers(1, len(rest)))
        seen += list(frames.feed(rest[:n]))
        rest = rest[n:]
    assert seen == messages


@given(st.binary(max_size=300))
def test_messages_are_framed_as_a_connection_does_it(message: bytes) -> None:
    assert frame(pickle.dumps(message, 4)) == written(message)


def test_a_message_of_gigabytes_has_a_longer_head() -> None:
    frame = written("big")
    pickled = frame[4:]
    assert list(FrameDecoder().feed(struct.pack("!iQ", -1, len(pickled)) + pickled)) == ["big"]


class Reading:
    """A pipe that is read, and what came out of it, with the thread that each message was handled on."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self.seen: list[Any] = []
        self.threads: set[threading.Thread] = set()
        self.is_over = threading.Event()
        ours, self.theirs = multiprocessing.Pipe()
        self.ours: Connection = ours
        receive(ours, self._on_message, self._on_end, loop)

    def _on_message(self, message: Any) -> None:
        self.seen.append(message)
        self.threads.add(threading.current_thread())
        if message == "bad":
            raise RuntimeError("nobody can handle this")

    def _on_end(self, dispatch: Dispatch) -> None:
        assert threading.current_thread() is not threading.main_thread()
        self.ours.close()
        dispatch(self._on_message, "end")
        self.is_over.set()


def test_a_thread_reads_where_there_is_no_loop() -> None:
    reading = Reading(None)
    for message in range(100):
        reading.theirs.send(message)
    reading.theirs.close()
    assert reading.is_over.wait(WAIT_S)
    assert reading.seen == [*range(100), "end"]
    assert threading.main_thread() not in reading.threads


async def test_a_loop_reads_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    reading = Reading(asyncio.get_running_loop())
    big = b"x" * 3_000_000
    messages = [1, None, "bad", big, 2]

    def write() -> None:
        for message in messages:
            reading.theirs.send(message)
        reading.theirs.close()

    await asyncio.to_thread(write)
    assert await asyncio.to_thread(reading.is_over.wait, WAIT_S)
    await asyncio.sleep(0)
    assert reading.seen == [*messages, "end"]
    assert reading.threads == {threading.current_thread()}
    assert "a message could not be handled" in caplog.text


@pytest.mark.parametrize("new_loop", list(loops()))
def test_a_long_message_goes_the_other_way_whole(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Longer than what the pipe holds, to somebody who is busy: who writes waits."""
    message = b"x" * 3_000_000

    async def write_while_reading() -> None:
        reading = Reading(asyncio.get_running_loop())
        writing = asyncio.create_task(asyncio.to_thread(reading.ours.send, message))
        await asyncio.sleep(0.2)
        assert not writing.done()
        assert await asyncio.to_thread(reading.theirs.recv) == message
        await writing
        reading.theirs.close()
        assert await asyncio.to_thread(reading.is_over.wait, WAIT_S)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(write_while_reading())


async def test_a_loop_that_watches_no_pipes_is_told_by_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()

    def add_reader(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(loop, "add_reader", add_reader)
    reading = Reading(loop)
    reading.theirs.send("hello")
    reading.theirs.close()
    assert await asyncio.to_thread(reading.is_over.wait, WAIT_S)
    await asyncio.sleep(0)
    assert reading.seen == ["hello", "end"]
    assert reading.threads == {threading.current_thread()}
