"""The events of a resumable stream: numbered, bounded, and read from any place by any number of readers."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.api.streams.errors import StreamGone
from ggufd.api.streams.event_log import EventLog


def event(text: str) -> bytes:
    return f"data: {text}\n\n".encode()


def sent(number: int, text: str) -> bytes:
    return f"id: {number}\ndata: {text}\n\n".encode()


def filled(*texts: str, ended: bool = True) -> EventLog:
    log = EventLog()
    for text in texts:
        log.add(event(text))
    if ended:
        log.end()
    return log


async def read(log: EventLog, number: int = 0, skip: int = 0) -> bytes:
    return b"".join([piece async for piece in log.read(number, skip)])


async def test_events_carry_their_numbers_as_ids() -> None:
    log = EventLog()
    log.add(event("a") + b"event: message_start\n" + event("b"))
    log.end()
    assert await read(log) == b"id: 0\ndata: a\n\nid: 1\nevent: message_start\ndata: b\n\n"
    assert (log.first, log.next) == (0, 2)


async def test_who_reads_later_reads_the_same() -> None:
    log = filled("a", "b", "c")
    assert await read(log) == await read(log) == sent(0, "a") + sent(1, "b") + sent(2, "c")
    assert await read(log, 2) == sent(2, "c")
    assert await read(log, 3) == b""


async def test_readers_get_what_was_there_and_what_comes() -> None:
    log = filled("a", ended=False)
    readers = [asyncio.create_task(read(log, number)) for number in (0, 0, 1)]
    await asyncio.sleep(0)
    log.add(event("b"))
    await asyncio.sleep(0)
    log.add(event("c"))
    log.end()
    both = sent(1, "b") + sent(2, "c")
    assert await asyncio.gather(*readers) == [sent(0, "a") + both, sent(0, "a") + both, both]


async def test_a_long_replay_comes_in_pieces_that_a_connection_takes() -> None:
    log = filled(*["x" * 30_000] * 10)
    pieces = [piece async for piece in log.read(0)]
    assert b"".join(pieces) == b"".join(sent(number, "x" * 30_000) for number in range(10))
    assert max(map(len, pieces)) <= 64 * 1024
    assert [len(piece) for piece in [piece async for piece in filled("x" * 200_000).read(0)]] == [200_014]


class TestComments:
    async def test_they_have_no_number_and_are_not_kept(self) -> None:
        log = EventLog()
        log.add(b": queue position=1 eta_s=2.0\n\n" + event("a"))
        log.end()
        assert await read(log) == sent(0, "a")
        assert log.n_sent_bytes == len(sent(0, "a"))

    async def test_who_waits_for_the_first_event_is_told_the_latest(self) -> None:
        log = EventLog()
        log.add(b": queue position=2 eta_s=9.0\n\n")
        log.add(b": queue position=1 eta_s=2.0\n\n")
        reader = log.read(0)
        assert await anext(reader) == b": queue position=1 eta_s=2.0\n"
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        assert not waiting.done()
        log.add(event("a"))
        assert await waiting == sent(0, "a")

    async def test_who_counts_bytes_is_told_none(self) -> None:
        log = EventLog()
        log.add(b": queue position=1 eta_s=2.0\n\n")
        log.add(event("a"))
        log.end()
        assert b"".join([piece async for piece in log.read(0, has_comments=False)]) == sent(0, "a")


class TestDropping:
    async def test_what_fell_out_is_an_error_that_says_where_to_go_on(self) -> None:
        log = filled("a", "b", "c")
        log.drop_oldest()
        with pytest.raises(StreamGone, match=r"event 1 is the oldest .* 'Last-Event-ID: 0'"):
            await read(log, 0)
        assert await read(log, 1) == sent(1, "b") + sent(2, "c")
        assert (log.first, log.next, log.n_dropped_bytes) == (1, 3, len(sent(0, "a")))

    async def test_a_reader_that_falls_behind_is_told_so(self) -> None:
        log = filled("a", "b", ended=False)
        reader = log.read(0)
        await anext(reader)
        log.add(event("c"))
        for _ in range(3):
            log.drop_oldest()
        with pytest.raises(StreamGone):
            await anext(reader)

    async def test_a_reader_that_keeps_up_notices_nothing(self) -> None:
        log = filled("a", ended=False)
        reader = log.read(0)
        assert await anext(reader) == sent(0, "a")
        log.drop_oldest()
        log.add(event("b"))
        log.end()
        assert [piece async for piece in reader] == [sent(1, "b")]

    async def test_after_a_cut_readers_get_what_is_said_instead(self) -> None:
        log = filled("a", "b", ended=False)
        reader = log.read(0)
        log.cut()
        log.add(event("revoked"))
        log.end()
        assert [piece async for piece in reader] == [sent(2, "revoked")]
        assert log.n_bytes == len(sent(2, "revoked"))


TEXTS = st.lists(st.text("ab", max_size=20), max_size=12)


@given(TEXTS, st.data())
async def test_any_byte_is_a_place_to_go_on_from(texts: list[str], data: st.DataObject) -> None:
    log = filled(*texts)
    whole = await read(log)
    for _ in range(data.draw(st.integers(0, max(0, len(texts) - 1)))):
        log.drop_oldest()
    offset = data.draw(st.integers(0, len(whole)))
    if offset < log.n_dropped_bytes:
        with pytest.raises(StreamGone):
            log.place_of(offset)
    else:
        assert await read(log, *log.place_of(offset)) == whole[offset:]
    assert log.n_sent_bytes == len(whole)
    assert log.n_bytes == len(whole) - log.n_dropped_bytes


@given(TEXTS, st.data())
async def test_a_reader_cut_off_anywhere_loses_nothing_and_gets_nothing_twice(
    texts: list[str], data: st.DataObject
) -> None:
    """It drops what it has of an unfinished event, and names the last one that it has whole."""
    log = EventLog()
    writer = asyncio.create_task(_write(log, texts))
    got: list[bytes] = []
    while True:
        seen = b""
        n_bytes = data.draw(st.integers(0, 200))
        async for piece in log.read(len(got)):
            seen += piece
            if len(seen) > n_bytes:
                break
        else:
            n_bytes = len(seen)
        got += [block + b"\n\n" for block in seen[:n_bytes].split(b"\n\n")[:-1]]
        if log.is_ended and len(got) == log.next:
            break
        await asyncio.sleep(0)
        if len(got) < log.next:
            # The same place may be drawn for ever.
            got.append((await anext(log.read(len(got)))).split(b"\n\n")[0] + b"\n\n")
    await writer
    assert b"".join(got) == await read(log)
    assert [block.splitlines()[0] for block in got] == [b"id: %d" % number for number in range(len(texts))]


async def _write(log: EventLog, texts: list[str]) -> None:
    for text in texts:
        log.add(event(text))
        await asyncio.sleep(0)
    log.end()
