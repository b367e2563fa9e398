"""Numbered events of one stream, bounded, with any number of readers at places of their own.

The first event has the number 0; it is sent with its number as its SSE id. Bytes count from the first one that was
sent, ids included. Comments are neither numbered nor kept: who waits for the first event is told the latest one.
No blank line follows them: OpenAI's clients take one for an event without data as soon as they have seen an id.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import accumulate

from ggufd.api.streams.errors import StreamGone

_WRITE_BYTES = 64 * 1024
"""Most bytes of events that are sent in one write, so that a replay fills no buffer; but one event at least."""


class EventLog:
    """Events `first` to `next - 1` of a stream. `n_dropped_bytes` were sent before them."""

    def __init__(self) -> None:
        self.first = 0
        self.n_dropped_bytes = 0
        self.n_bytes = 0
        self.is_ended = False
        self._events: list[bytes] = []
        self._comment = b""
        self._n_comments = 0
        self._is_cut = False
        self._news = asyncio.Event()

    @property
    def next(self) -> int:
        """The number of the event that comes next."""
        return self.first + len(self._events)

    @property
    def n_sent_bytes(self) -> int:
        """Bytes of all events that there ever were."""
        return self.n_dropped_bytes + self.n_bytes

    def add(self, data: bytes) -> None:
        """Take in whole events, and comments between them."""
        for block in data.split(b"\n\n")[:-1]:
            if block.startswith(b":"):
                self._comment, self._n_comments = block + b"\n", self._n_comments + 1
            else:
                event = b"id: %d\n%s\n\n" % (self.next, block)
                self._events.append(event)
                self.n_bytes += len(event)
        self._tell()

    def end(self) -> None:
        """Nothing more comes."""
        self.is_ended = True
        self._tell()

    def drop_oldest(self) -> None:
        """Forget the oldest event."""
        n_bytes = len(self._events.pop(0))
        self.first += 1
        self.n_bytes -= n_bytes
        self.n_dropped_bytes += n_bytes

    def cut(self) -> None:
        """Forget all events; readers go on with what is added after this."""
        self._is_cut = True
        self.first = self.next
        self.n_dropped_bytes += self.n_bytes
        self.n_bytes = 0
        self._events.clear()
        self._tell()

    def place_of(self, offset: int) -> tuple[int, int]:
        """The event that holds the byte at `offset`, and how many of its bytes come before that. Raises StreamGone."""
        if offset < self.n_dropped_bytes:
            raise StreamGone.beginning(self.first)
        ends = accumulate((len(event) for event in self._events), initial=self.n_dropped_bytes)
        begin = next(ends)
        for number, end in enumerate(ends, self.first):
            if offset < end:
                return number, offset - begin
            begin = end
        return self.next, 0

    async def read(self, number: int, skip: int = 0, *, has_comments: bool = True) -> AsyncIterator[bytes]:
        """Events from `number` on, without the first `skip` bytes, until the end. Raises StreamGone when they are lost.

        A reader that is slower than what comes loses nothing until the log drops what it has not read.
        """
        n_comments = 0
        while True:
            if number < self.first:
                if not self._is_cut:
                    raise StreamGone.beginning(self.first)
                number, skip = self.first, 0
            if number < self.next:
                events = self._piece(number)
                number += len(events)
                yield b"".join(events)[skip:]
                skip = 0
            elif self.is_ended:
                return
            elif has_comments and n_comments < self._n_comments:
                n_comments = self._n_comments
                if self.next == 0:
                    yield self._comment
            else:
                await self._news.wait()

    def _piece(self, number: int) -> list[bytes]:
        """Some events from `number` on, one at least."""
        events: list[bytes] = []
        n_bytes = 0
        for event in self._events[number - self.first :]:
            if events and n_bytes + len(event) > _WRITE_BYTES:
                break
            events.append(event)
            n_bytes += len(event)
        return events

    def _tell(self) -> None:
        """Wake the readers."""
        self._news.set()
        self._news = asyncio.Event()
