"""One resumable stream: the generation that writes its events, and the readers that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sse_starlette import ServerSentEvent

from ggufd.api.streams.event_log import EventLog
from ggufd.errors import GgufdError


class Producer(Protocol):
    """What writes the events of a stream."""

    def abort(self) -> None:
        """End it with what there is."""

    def refuse(self, error: GgufdError) -> None:
        """End it with an error."""


@dataclass(frozen=True, slots=True)
class StreamHead:
    """What is told of a stream besides its events.

    `owner` is who may read it. `conversation_id` is llama-server's name for it; such a stream has no comments, so that
    its bytes can be counted. `headers` and `ignored` are of the first response, `ping` is what a silent reader is sent,
    `refusal` is an error event in the shape of the stream's API.
    """

    stream_id: str
    owner: str
    path: str
    ping: ServerSentEvent | bytes
    refusal: Callable[[GgufdError], bytes]
    conversation_id: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    ignored: Sequence[str] = ()


class KeptStream:
    """A resumable stream. `on_change` is called when readers come or leave, and at the end, which is at `ended_s`.

    `is_forgotten` says that it exists for nobody any more: only the readers that it has go on to its end.
    """

    def __init__(self, head: StreamHead, producer: Producer, on_change: Callable[[KeptStream], None]) -> None:
        self.head = head
        self.log = EventLog()
        self.n_readers = 0
        self.is_forgotten = False
        self.started_s = time.monotonic()
        self.ended_s = 0.0
        self._producer: Producer | None = producer
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        return not self.log.is_ended

    @contextlib.contextmanager
    def reading(self) -> Iterator[EventLog]:
        """The events, while somebody reads them."""
        self.n_readers += 1
        self._on_change(self)
        try:
            yield self.log
        finally:
            self.n_readers -= 1
            self._on_change(self)

    def produce(self, work: Coroutine[object, object, None]) -> None:
        """Let `work` write the events, with nobody waiting for it."""
        # A task that nobody holds may be collected before it is done.
        self._task = asyncio.create_task(work)

    def abort(self) -> None:
        """End the generation with what there is."""
        if self._producer is not None:
            self._producer.abort()

    def refuse(self, error: GgufdError) -> None:
        """End the generation with an error."""
        if self._producer is not None:
            self._producer.refuse(error)

    def end(self) -> None:
        """The generation has ended."""
        self._producer = None
        self.ended_s = time.monotonic()
        self.log.end()
        self._on_change(self)

    def cut(self, error: GgufdError) -> None:
        """Forget all events now. Readers are told the error instead, by the generation where it still runs."""
        self.log.cut()
        if self.log.is_ended:
            self.log.add(self.head.refusal(error))
