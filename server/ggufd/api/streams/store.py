"""Store of resumable streams: who may find them, how many there may be, and when they go.

What is bounded is everything that is kept, of running streams and of ended ones. Room is made by ended streams, the
oldest of whoever holds the most; where there is none left, the longest of the running ones lose their beginning.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable

from ggufd.api.services.metrics import Metrics
from ggufd.api.services.settings import StreamLimits
from ggufd.api.streams.errors import StreamGone, Unread, no_stream
from ggufd.api.streams.kept_stream import KeptStream, Producer, StreamHead
from ggufd.errors import TooManyRequests, Unauthorized, Unavailable, Unsupported
from ggufd.keys.ring import KeyRing

_RETRY_S = 5.0
"""Retry-After where too many run; an assumption, for how long they will is not known."""


class StreamStore:
    """Resumable streams of everybody. A stream exists for its owner only; a key that is revoked owns nothing.

    Without `keys` owners are addresses.
    """

    def __init__(self, limits: StreamLimits, keys: KeyRing | None = None) -> None:
        self._limits = limits
        self._keys = keys
        self._streams: dict[str, KeptStream] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self.n_resumed = 0
        if keys is not None:
            keys.watch(self._look)

    @property
    def n_running(self) -> int:
        return sum(stream.is_running for stream in self._streams.values())

    @property
    def n_ended(self) -> int:
        return len(self._streams) - self.n_running

    @property
    def n_bytes(self) -> int:
        """Bytes of all events that are kept."""
        return _n_bytes(self._streams.values())

    def export(self, metrics: Metrics) -> None:
        """Show what is kept among the metrics."""
        metrics.watch("streams_running", "Resumable streams whose answer is being written.", lambda: self.n_running)
        metrics.watch("streams_ended", "Resumable streams that have ended and are kept.", lambda: self.n_ended)
        metrics.watch("streams_bytes", "Bytes of events kept of resumable streams.", lambda: self.n_bytes)
        metrics.watch("streams_resumed", "Times that a client went on with a stream.", lambda: self.n_resumed)

    def open(self, head: StreamHead, producer: Producer) -> KeptStream:
        """A new stream in place of one of the same conversation. Raises TooManyRequests, Unavailable or Unsupported."""
        if not self._limits.max_streams or not self._limits.max_streams_per_key:
            raise Unsupported("'resumable': this server keeps no streams. Leave it out.", param="resumable")
        self._replace(head)
        self._make_place(head.owner)
        stream = self._streams[head.stream_id] = KeptStream(head, producer, self._settle)
        self._settle(stream)
        return stream

    def add(self, stream: KeptStream, data: bytes) -> None:
        """Take in events of a stream. What is older may have to go for them."""
        stream.log.add(data)
        while stream.log.n_bytes > self._limits.max_bytes_each:
            stream.log.drop_oldest()
        self._make_room(lambda: self._of_owner(stream.head.owner), self._limits.max_bytes_per_key)
        self._make_room(self._streams.values, self._limits.max_bytes)

    def get(self, owner: str, stream_id: str) -> KeptStream:
        """A stream of this owner. Raises NotFound."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.is_forgotten or stream.head.owner != owner:
            raise no_stream(stream_id, self._limits.kept_s)
        return stream

    def of(self, owner: str) -> list[KeptStream]:
        """All streams of this owner, the oldest first."""
        return [stream for stream in self._of_owner(owner) if not stream.is_forgotten]

    def forget(self, stream: KeptStream) -> None:
        """End a stream, and let nobody find it any more."""
        stream.is_forgotten = True
        stream.abort()
        self._settle(stream)

    def check_integrity(self) -> None:
        """Raises AssertionError when a bound does not hold."""
        limits = self._limits
        owners = {stream.head.owner for stream in self._streams.values()}
        assert len(self._streams) <= limits.max_streams
        assert self.n_bytes <= limits.max_bytes
        for owner in owners:
            assert len(self._of_owner(owner)) <= limits.max_streams_per_key
            assert _n_bytes(self._of_owner(owner)) <= limits.max_bytes_per_key
        assert all(stream.log.n_bytes <= limits.max_bytes_each for stream in self._streams.values())
        assert self._timers.keys() <= self._streams.keys()

    # --- places and room --------------------------------------------------------------------------------------------

    def _of_owner(self, owner: str) -> list[KeptStream]:
        return [stream for stream in self._streams.values() if stream.head.owner == owner]

    def _replace(self, head: StreamHead) -> None:
        """As in llama-server, a conversation has one stream."""
        for stream in self.of(head.owner):
            if head.conversation_id and stream.head.conversation_id == head.conversation_id:
                self.forget(stream)

    def _make_place(self, owner: str) -> None:
        """Make place for one more stream of this owner."""
        limits = self._limits
        while len(self._of_owner(owner)) >= limits.max_streams_per_key:
            if not self._evict(self._of_owner(owner), len):
                raise TooManyRequests(
                    f"'resumable': {limits.max_streams_per_key} resumable streams of this key are running, as many as "
                    "may. Wait for one, end one with DELETE /v1/streams/ID, or leave 'resumable' out.",
                    param="resumable",
                    retry_after_s=_RETRY_S,
                )
        while len(self._streams) >= limits.max_streams:
            if not self._evict(self._streams.values(), len):
                raise Unavailable(
                    f"'resumable': {limits.max_streams} resumable streams are running, as many as this server keeps. "
                    "Try again later, or leave 'resumable' out.",
                    param="resumable",
                    retry_after_s=_RETRY_S,
                )

    def _make_room(self, streams: Callable[[], Collection[KeptStream]], max_bytes: int) -> None:
        while _n_bytes(streams()) > max_bytes:
            if not self._evict(streams(), _n_bytes):
                max(streams(), key=lambda stream: stream.log.n_bytes).log.drop_oldest()

    def _evict(self, streams: Iterable[KeptStream], weight: Callable[[Collection[KeptStream]], int]) -> bool:
        """Drop the oldest ended stream of the owner with the most; one without a reader, if there is one."""
        ended = [stream for stream in streams if not stream.is_running]
        if not ended:
            return False
        owners = dict.fromkeys(stream.head.owner for stream in ended)
        heaviest = max(owners, key=lambda owner: weight(self._of_owner(owner)))
        own = [stream for stream in ended if stream.head.owner == heaviest]
        victim = min(own, key=lambda one: (one.n_readers > 0, not one.is_forgotten, one.ended_s))
        self._drop(victim)
        victim.cut(StreamGone.whole())
        return True

    def _drop(self, stream: KeptStream) -> None:
        stream.is_forgotten = True
        del self._streams[stream.head.stream_id]
        self._stop_timer(stream)

    # --- time -------------------------------------------------------------------------------------------------------

    def _settle(self, stream: KeptStream) -> None:
        """What becomes of a stream whose readers or generation have changed."""
        self._stop_timer(stream)
        if stream.head.stream_id not in self._streams or stream.n_readers:
            return
        if stream.is_running:
            if not stream.is_forgotten:
                self._start_timer(stream, self._limits.unread_s, self._end_unread)
        elif stream.is_forgotten:
            self._drop(stream)
        else:
            left_s = stream.ended_s + self._limits.kept_s - time.monotonic()
            self._start_timer(stream, max(0.0, left_s), self._drop)

    def _start_timer(self, stream: KeptStream, seconds: float, action: Callable[[KeptStream], None]) -> None:
        loop = asyncio.get_running_loop()
        self._timers[stream.head.stream_id] = loop.call_later(seconds, action, stream)

    def _stop_timer(self, stream: KeptStream) -> None:
        timer = self._timers.pop(stream.head.stream_id, None)
        if timer is not None:
            timer.cancel()

    def _end_unread(self, stream: KeptStream) -> None:
        self._stop_timer(stream)
        stream.refuse(Unread.after(self._limits.unread_s))

    # --- keys -------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """The keys have changed: what belongs to one that is gone goes. Its generations end by themselves."""
        for stream in list(self._streams.values()):
            if self._keys is not None and not self._keys.holds(bytes.fromhex(stream.head.owner)):
                self._revoke(stream)

    def _revoke(self, stream: KeptStream) -> None:
        error = Unauthorized("The API key of this stream was removed or replaced. Send the request again with another.")
        stream.is_forgotten = True
        stream.cut(error)
        self._settle(stream)


def _n_bytes(streams: Iterable[KeptStream]) -> int:
    return sum(stream.log.n_bytes for stream in streams)
