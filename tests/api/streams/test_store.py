"""The store of resumable streams: who finds what, how much there may be, and when it goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sse_starlette import ServerSentEvent

from ggufd.api.answer.sse import ChunkFormat
from ggufd.api.services.settings import StreamLimits
from ggufd.api.streams.errors import StreamGone, Unread
from ggufd.api.streams.kept_stream import KeptStream, StreamHead
from ggufd.api.streams.store import StreamStore
from ggufd.errors import GgufdError, NotFound, TooManyRequests, Unauthorized, Unavailable, Unsupported
from ggufd.keys.ring import Key, KeyRing, digest_of
from tests.api.streams.test_event_log import event, read, sent
from tests.support.examples import examples
from tests.support.virtual_time import virtual_time

ALICE, BOB = digest_of("a").hex(), digest_of("b").hex()


class FakeProducer:
    """Writes nothing by itself. What was done to it is noted."""

    def __init__(self) -> None:
        self.n_aborts = 0
        self.errors: list[GgufdError] = []

    def abort(self) -> None:
        self.n_aborts += 1

    def refuse(self, error: GgufdError) -> None:
        self.errors.append(error)


class Rig:
    """A store, and streams of it with producers."""

    def __init__(self, ring: KeyRing | None = None, **limits: float) -> None:
        self.store = StreamStore(replace(StreamLimits(), **limits), ring)  # type: ignore[arg-type]
        self.producers: dict[str, FakeProducer] = {}
        self._numbers = count()

    def open(self, owner: str = ALICE, conversation_id: str = "") -> KeptStream:
        stream_id = f"s{next(self._numbers)}"
        head = StreamHead(
            stream_id, owner, "/v1/completions", ServerSentEvent(), ChunkFormat.refusal, conversation_id=conversation_id
        )
        producer = self.producers[stream_id] = FakeProducer()
        return self.store.open(head, producer)

    def ended(self, owner: str = ALICE, n_bytes: int = 10) -> KeptStream:
        stream = self.open(owner)
        self.store.add(stream, event("x" * n_bytes))
        stream.end()
        return stream

    def ids(self, owner: str = ALICE) -> list[str]:
        return [stream.head.stream_id for stream in self.store.of(owner)]


def unknown(find: Callable[[], object]) -> str:
    with pytest.raises(NotFound) as caught:
        find()
    assert caught.value.status == 404
    return caught.value.message


class TestWho:
    async def test_a_stream_exists_for_its_owner_only(self) -> None:
        rig = Rig()
        stream = rig.open()
        assert rig.store.get(ALICE, "s0") is stream
        assert (rig.ids(ALICE), rig.ids(BOB)) == (["s0"], [])
        others, nobodys = unknown(lambda: rig.store.get(BOB, "s0")), unknown(lambda: rig.store.get(BOB, "s1"))
        assert others.replace("s0", "s1") == nobodys
        assert "It may have ended more than 300 s ago" in others

    async def test_what_is_forgotten_is_ended_and_found_no_more(self) -> None:
        rig = Rig()
        stream = rig.open()
        rig.store.forget(stream)
        assert rig.producers["s0"].n_aborts == 1
        unknown(lambda: rig.store.get(ALICE, "s0"))
        assert rig.ids() == []
        with stream.reading() as log:
            rig.store.add(stream, event("last"))
            stream.end()
            assert await read(log) == sent(0, "last")
        assert rig.store.n_ended == rig.store.n_running == 0

    async def test_a_conversation_has_one_stream_of_each_owner(self) -> None:
        rig = Rig()
        rig.open(conversation_id="c")
        rig.open(conversation_id="other")
        rig.open(BOB, conversation_id="c")
        rig.open(conversation_id="c")
        assert [rig.producers[one].n_aborts for one in ("s0", "s1", "s2", "s3")] == [1, 0, 0, 0]
        assert (rig.ids(ALICE), rig.ids(BOB)) == (["s1", "s3"], ["s2"])

    async def test_a_revoked_key_owns_nothing(self) -> None:
        ring = KeyRing((Key("alice", digest_of("a")), Key("bob", digest_of("b"))))
        rig = Rig(ring)
        running, ended = rig.open(), rig.ended()
        rig.ended(BOB)
        rig.store.add(running, event("secret"))
        with running.reading(), ended.reading():
            reading = [asyncio.create_task(read(one.log)) for one in (running, ended)]
            ring.replace(key for key in ring if key.name == "bob")
            assert running.log.n_bytes == 0
            unknown(lambda: rig.store.get(ALICE, "s0"))
            unknown(lambda: rig.store.get(ALICE, "s1"))
            # The generation is ended by who knows its request; here it tells so.
            rig.store.add(running, running.head.refusal(Unauthorized("gone")))
            running.end()
            texts = [text.decode() for text in await asyncio.gather(*reading)]
        assert all("secret" not in text and '"code":"invalid_api_key"' in text for text in texts)
        assert (rig.store.n_running, rig.store.n_ended) == (0, 1)
        assert rig.ids(BOB) == ["s2"]


class TestHowMany:
    async def test_ended_ones_make_room_the_oldest_first(self) -> None:
        rig = Rig(max_streams_per_key=3)
        rig.ended()
        rig.open()
        rig.ended()
        rig.open()
        assert rig.ids() == ["s1", "s2", "s3"]
        rig.open()
        assert rig.ids() == ["s1", "s3", "s4"]
        with pytest.raises(TooManyRequests, match=r"3 resumable streams of this key are running.*DELETE") as caught:
            rig.open()
        assert (caught.value.param, caught.value.status) == ("resumable", 429)
        rig.open(BOB)

    async def test_of_all_too(self) -> None:
        rig = Rig(max_streams=2)
        rig.open(ALICE)
        rig.open(BOB)
        with pytest.raises(Unavailable, match="2 resumable streams are running") as caught:
            rig.open(ALICE)
        assert caught.value.status == 503

    async def test_who_has_most_makes_room(self) -> None:
        rig = Rig(max_streams=4)
        for owner in (BOB, ALICE, ALICE, ALICE):
            rig.ended(owner)
        rig.open("carol")
        assert (rig.ids(ALICE), rig.ids(BOB)) == (["s2", "s3"], ["s0"])

    async def test_what_is_read_goes_last_and_its_reader_is_told(self) -> None:
        rig = Rig(max_streams_per_key=2)
        read_one = rig.ended()
        with read_one.reading() as log:
            reader = log.read(0)
            rig.ended()
            rig.open()
            assert rig.ids() == ["s0", "s2"]
            rig.open()
            assert rig.ids() == ["s2", "s3"]
            assert b"newer ones took its room" in b"".join([piece async for piece in reader])

    async def test_none_may_be_kept_at_all(self) -> None:
        with pytest.raises(Unsupported, match="keeps no streams"):
            Rig(max_streams=0).open()


class TestHowMuch:
    async def test_a_long_stream_loses_its_beginning(self) -> None:
        rig = Rig(max_bytes_each=110)
        stream = rig.open()
        for number in range(10):
            rig.store.add(stream, event(str(number) * 20))
        assert stream.log.first == 7
        assert stream.log.n_bytes == 3 * len(sent(9, "9" * 20))
        with pytest.raises(StreamGone):
            await anext(stream.log.read(6))

    async def test_ended_ones_of_the_same_key_go_first(self) -> None:
        rig = Rig(max_bytes_per_key=200)
        rig.ended(n_bytes=80)
        rig.ended(BOB, n_bytes=80)
        stream = rig.open()
        rig.store.add(stream, event("x" * 90))
        assert rig.ids() == ["s0", "s2"]
        rig.store.add(stream, event("x" * 20))
        assert (rig.ids(ALICE), rig.ids(BOB)) == (["s2"], ["s1"])
        assert stream.log.first == 0

    async def test_then_the_longest_running_ones_give_way(self) -> None:
        rig = Rig(max_bytes=300)
        long, short = rig.open(ALICE), rig.open(BOB)
        for _ in range(4):
            rig.store.add(long, event("x" * 50))
        rig.store.add(short, event("x" * 50))
        assert (long.log.first, short.log.first) == (1, 0)

    async def test_an_event_that_is_too_long_is_not_kept(self) -> None:
        rig = Rig(max_bytes_each=50)
        stream = rig.open()
        rig.store.add(stream, event("x" * 100))
        assert (stream.log.first, stream.log.next, rig.store.n_bytes) == (1, 1, 0)


class TestHowLong:
    @pytest.fixture(autouse=True)
    async def _time(self) -> AsyncIterator[None]:
        with virtual_time():
            yield

    async def test_an_ended_stream_goes_after_its_time(self) -> None:
        rig = Rig(kept_s=0.05)
        rig.ended()
        assert rig.ids() == ["s0"]
        await asyncio.sleep(0.1)
        assert rig.ids() == []
        assert rig.store.n_bytes == 0
        unknown(lambda: rig.store.get(ALICE, "s0"))

    async def test_not_while_it_is_read(self) -> None:
        rig = Rig(kept_s=0.05)
        with rig.ended().reading():
            await asyncio.sleep(0.1)
            assert rig.ids() == ["s0"]
        await asyncio.sleep(0.01)
        assert rig.ids() == []

    async def test_an_answer_that_nobody_reads_ends_with_an_error(self) -> None:
        rig = Rig(unread_s=0.05)
        rig.open()
        await asyncio.sleep(0.1)
        (error,) = rig.producers["s0"].errors
        assert isinstance(error, Unread)
        assert error.message == "Nobody read this answer for 0.05 s, so it was ended. Send the request again."

    async def test_a_reader_that_comes_back_in_time_saves_it(self) -> None:
        rig = Rig(unread_s=0.1)
        stream = rig.open()
        await asyncio.sleep(0.02)
        with stream.reading():
            await asyncio.sleep(0.2)
            assert rig.producers["s0"].errors == []
        await asyncio.sleep(0.02)
        assert rig.producers["s0"].errors == []
        await asyncio.sleep(0.2)
        assert len(rig.producers["s0"].errors) == 1


class StoreMachine(RuleBasedStateMachine):
    """Streams of three owners begin, grow, end, are read and forgotten: no bound is ever passed."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.rig = Rig(max_streams=5, max_streams_per_key=3, max_bytes=900, max_bytes_per_key=500, max_bytes_each=300)
        self.running: list[KeptStream] = []
        self.stack = ExitStack()

    def do(self, action: Callable[[], object]) -> None:
        async def run() -> None:
            action()

        self.loop.run_until_complete(run())

    @rule(owner=st.sampled_from([ALICE, BOB, "carol"]), conversation_id=st.sampled_from(["", "c"]))
    def begin(self, owner: str, conversation_id: str) -> None:
        n_running = sum(stream.head.owner == owner for stream in self.running)

        def begin() -> None:
            try:
                self.running.append(self.rig.open(owner, conversation_id))
            except TooManyRequests:
                assert n_running == 3
            except Unavailable:
                assert len(self.running) == 5

        self.do(begin)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), texts=st.lists(st.integers(0, 400), max_size=4))
    def grow(self, data: st.DataObject, texts: list[int]) -> None:
        stream = data.draw(st.sampled_from(self.running))
        self.do(lambda: self.rig.store.add(stream, b"".join(event("x" * n) for n in texts)))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        stream = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.do(stream.end)

    @rule(data=st.data(), owner=st.sampled_from([ALICE, BOB, "carol"]))
    def forget(self, data: st.DataObject, owner: str) -> None:
        if streams := self.rig.store.of(owner):
            self.do(lambda: self.rig.store.forget(data.draw(st.sampled_from(streams))))

    @rule(data=st.data(), owner=st.sampled_from([ALICE, BOB, "carol"]))
    def read(self, data: st.DataObject, owner: str) -> None:
        if streams := self.rig.store.of(owner):
            self.do(lambda: self.stack.enter_context(data.draw(st.sampled_from(streams)).reading()))

    @rule()
    def leave(self) -> None:
        self.do(self.stack.close)

    @invariant()
    def bounds_hold(self) -> None:
        self.rig.store.check_integrity()
        assert self.rig.store.n_running == len(self.running)

    def teardown(self) -> None:
        self.do(self.stack.close)
        self.loop.close()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)
