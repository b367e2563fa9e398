"""Open requests: their streams, which of them wait, and how long requests have taken lately.

Knows neither the engine's process nor its state.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator

from ggufd.engine.client.stream import RequestStream
from ggufd.engine.messages.events import RequestEvent
from ggufd.engine.messages.requests import EngineRequest
from ggufd.errors import GgufdError

_SMOOTHING = 0.1
_FIRST_SERVICE_S = 1.0


class OpenRequests:
    """Streams of all requests that have not ended."""

    def __init__(self) -> None:
        self._streams: dict[int, RequestStream] = {}
        self._service_s = _FIRST_SERVICE_S
        self._empty = asyncio.Event()
        self._empty.set()

    def __bool__(self) -> bool:
        return bool(self._streams)

    def __iter__(self) -> Iterator[RequestStream]:
        """The streams in the order of arrival; they may end meanwhile."""
        return iter(list(self._streams.values()))

    def __contains__(self, stream: RequestStream) -> bool:
        return stream.request.request_id in self._streams

    @property
    def waiting(self) -> list[RequestStream]:
        """Requests without a slot yet, background work apart, in the order of arrival."""
        return [stream for stream in self._streams.values() if _is_waiting(stream)]

    @property
    def n_waiting(self) -> int:
        """Number of requests without a slot yet, background work apart."""
        return n_waiting(self._streams.values())

    @property
    def n_running(self) -> int:
        return sum(not _is_background(stream) for stream in self._streams.values()) - self.n_waiting

    def n_free(self, n_slots: int) -> int:
        """Number of slots that no request holds, of `n_slots`; background work gives up its own."""
        return max(0, n_slots - n_held(self._streams.values()))

    def wait_s(self, n_ahead: int, n_slots: int) -> float:
        """Forecast of the time until `n_ahead` requests have gone through `n_slots` slots; a second at least."""
        return max(1.0, self._service_s * n_ahead / n_slots)

    def add(self, stream: RequestStream) -> None:
        self._streams[stream.request.request_id] = stream
        self._empty.clear()

    def get(self, request_id: int) -> RequestStream | None:
        return self._streams.get(request_id)

    def deliver(self, stream: RequestStream, event: RequestEvent) -> None:
        """Put an event into its stream; the last one closes the request."""
        stream.put(event)
        if stream.is_done and stream in self:
            self.remove(stream)
            if stream.is_admitted and not _is_background(stream):
                took_s = time.monotonic() - stream.admitted_s
                self._service_s += _SMOOTHING * (took_s - self._service_s)

    def remove(self, stream: RequestStream) -> None:
        del self._streams[stream.request.request_id]
        if not self._streams:
            self._empty.set()

    def fail(self, error: GgufdError) -> None:
        """End every request with `error`."""
        for stream in self:
            stream.fail(error)
            self.remove(stream)

    async def wait_empty(self) -> None:
        """Wait until no request is open."""
        await self._empty.wait()


def n_waiting(streams: Iterable[RequestStream]) -> int:
    """Number of them without a slot yet."""
    return sum(map(_is_waiting, streams))


def _is_waiting(stream: RequestStream) -> bool:
    return not stream.is_admitted and not _is_background(stream)


def _is_background(stream: RequestStream) -> bool:
    return stream.request.principal.is_background


def n_held(streams: Iterable[RequestStream]) -> int:
    """Number of slots that they hold, or are about to: an admitted request gets one for each sequence."""
    holders = (s for s in streams if s.is_admitted and not _is_background(s))
    return sum(stream.request.n for stream in holders if isinstance(stream.request, EngineRequest))
