"""Stream of one request's events: a bounded buffer between the engine and the reader, awaited on the event loop."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from ggufd.engine.messages.events import Admitted, Embedding, Failed, Output, Queued, RequestEvent
from ggufd.engine.messages.requests import EmbedRequest, EngineRequest
from ggufd.errors import EngineFailure, GgufdError, from_code
from ggufd.keys.principal import Principal

_MAX_UNREAD = 10_000
"""Bound of the event buffer of a client that reads more slowly than its answer is made: some megabytes."""


class RequestStream:
    """Events of one request, in order; an async iterator, and a context that aborts what is not finished.

    `on_abort` is called when the rest is not wanted any more, `on_finish` when one sequence is to end as it is.

    Raises the `GgufdError` that ended the request, if one did.
    """

    def __init__(
        self,
        request: EngineRequest | EmbedRequest,
        on_abort: Callable[[RequestStream], None],
        on_finish: Callable[[RequestStream, int], None],
    ) -> None:
        self.request = request
        self.is_admitted = False
        self.submitted_s = time.monotonic()
        self.admitted_s = 0.0
        self._on_abort = on_abort
        self._on_finish = on_finish
        self._n_open = request.n
        self._events: deque[RequestEvent] = deque()
        self._error: GgufdError | None = None
        self._wake: asyncio.Future[None] | None = None

    @property
    def is_done(self) -> bool:
        """Whether nothing more will come."""
        return self._n_open == 0 or self._error is not None

    @property
    def principal(self) -> Principal:
        """Who it is computed for."""
        return self.request.principal

    def abort(self) -> None:
        """Stop the request; nothing more will come."""
        if not self.is_done:
            self._n_open = 0
            self._on_abort(self)
        self._notify()

    def refuse(self, error: GgufdError) -> None:
        """Stop the request and drop what was not read yet: `error` is raised instead."""
        if not self.is_done:
            self._on_abort(self)
        elif not self._events:
            return
        self._events.clear()
        self._error = error
        self._notify()

    def finish(self, index: int) -> None:
        """End one sequence with what it has said so far; its last event still comes."""
        if not self.is_done:
            self._on_finish(self, index)

    async def __aenter__(self) -> RequestStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.abort()

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> RequestEvent:
        await self._some()
        if not self._events:
            raise StopAsyncIteration
        return self._events.popleft()

    async def take(self) -> list[RequestEvent]:
        """All events that are there, at least one; empty at the end."""
        await self._some()
        events = list(self._events)
        self._events.clear()
        return events

    async def placed(self) -> None:
        """Wait until the engine has taken the request in: it runs, or knows its turn. Raises what refused it."""
        await self._some()
        if not reports_queue(self.request) and self._events and isinstance(self._events[0], Queued):
            self._events.popleft()

    async def _some(self) -> None:
        while not self._events:
            if self._error is not None:
                raise self._error
            if self._n_open == 0:
                return
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake

    def put(self, event: RequestEvent) -> None:
        """Buffer an event of the engine; the reader is woken."""
        if isinstance(event, Failed):
            error = from_code(event.code, event.message, param=event.param, retry_after_s=event.retry_after_s)
            self.fail(error)
            return
        if isinstance(event, Embedding) or (isinstance(event, Output) and event.finish is not None):
            self._n_open -= 1
        elif isinstance(event, Admitted) and not self.is_admitted:
            self.is_admitted = True
            self.admitted_s = time.monotonic()
        if len(self._events) >= _MAX_UNREAD:
            self._drop_reader()
            return
        self._events.append(event)
        self._notify()

    def _drop_reader(self) -> None:
        """Drop a slow reader: the event buffer is bounded, and the engine waits for nobody."""
        self._on_abort(self)
        self.fail(EngineFailure(f"the answer was read too slowly: {_MAX_UNREAD} pieces of it were waiting to be sent"))

    def fail(self, error: GgufdError) -> None:
        """End the stream with `error`, after what is buffered."""
        if not self.is_done:
            self._error = error
        self._notify()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
        self._wake = None


def reports_queue(request: EngineRequest | EmbedRequest) -> bool:
    return isinstance(request, EngineRequest) and request.report_queue
