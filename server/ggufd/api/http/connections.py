"""Connection limits: timeouts against slow clients (slowloris, unread answers) and a cap on open connections.

A request that does not arrive, a head without an end, an answer that nobody reads and more connections than there are
file descriptors each end in time, so that the others are served. Costs nothing where all goes well: timers run only
while something is incomplete. Knows no route and no body.
"""

from __future__ import annotations

import asyncio
import functools
import http
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from ggufd.api.http.error_shape import openai_body
from ggufd.api.http.json_response import dumps

if TYPE_CHECKING:
    # The two that uvicorn chooses from have the same attributes.
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as HttpProtocol
else:
    HttpProtocol = AutoHTTPProtocol

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
"""Of a request line and its headers; nginx takes 32 KiB."""

KEEP_ALIVE_S = 65
"""Longer than clients and proxies keep an idle connection (5 to 60 s): who closes first must be the one who asks, or a
request that is sent just then is lost."""


_PIECE_BYTES = 8 * 1024
"""Of what arrived, parsed at a time: hundreds of requests that wait for no answer fit into it, not thousands."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits: seconds for a request to arrive, seconds for a client to read some of its answer, open connections."""

    read_timeout_s: float = 30.0
    write_timeout_s: float = 60.0
    n_connections: int = 10_000


class ConnectionGuard:
    """Open connections of one server. `awaited` are those whose request is awaited or incomplete, longest first."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self.awaited: dict[Connection, None] = {}
        self.n_open = 0

    def options(self) -> dict[str, Any]:
        """Settings of uvicorn that bring this in. A web socket would leave our protocol for another."""
        return {
            "http": functools.partial(Connection, self),
            "ws": "none",
            "timeout_keep_alive": KEEP_ALIVE_S,
        }

    def make_room(self) -> bool:
        """Whether there is room for the connection that just came: the one that has dawdled longest gives way."""
        if self.n_open <= self.limits.n_connections:
            return True
        oldest = next(iter(self.awaited), None)
        if oldest is not None:
            oldest.drop()
        return oldest is not None


class Connection(HttpProtocol):
    """HTTP connection: uvicorn's protocol with these limits."""

    def __init__(self, guard: ConnectionGuard, **options: Any) -> None:
        super().__init__(**options)
        self._guard = guard
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._n_head_bytes = 0
        self._unparsed = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._guard.n_open += 1
        if self._guard.make_room():
            self._start_reading()
        else:
            message = (
                f"The server has {self._guard.limits.n_connections} connections, as many as it can. Try again soon."
            )
            self._refuse(503, message, "too_many_connections")

    def connection_lost(self, exc: Exception | None) -> None:
        self._guard.n_open -= 1
        self._stop_reading()
        self._stop_writing()
        self._unparsed = b""
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unparsed += data
        self._parse()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:
            self._await()
        elif self.cycle.more_body:
            # A pipelined request may have begun to be answered before it is whole.
            self._start_reading()
        self._parse()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self._writing_timer()

    def resume_writing(self) -> None:
        self._stop_writing()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._close()

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, in the format of every other error."""
        self._refuse(400, "This is not valid HTTP. Send a request of HTTP/1.1.", "invalid_http")

    def drop(self) -> None:
        """End it now, to make room."""
        self._stop_reading()
        self.transport.abort()

    # --- arriving ---------------------------------------------------------------------------------------------------

    def _parse(self) -> None:
        """Parse what has arrived, until requests queue up behind the one that is being answered.

        uvicorn alone parses all of it, and reads more after each answer: who asks faster than is answered would fill
        the memory, and keep everybody waiting for the parser.
        """
        while self._unparsed and not self._has_queued and not self.transport.is_closing():
            piece, self._unparsed = self._unparsed[:_PIECE_BYTES], self._unparsed[_PIECE_BYTES:]
            super().data_received(piece)
            self._look(len(piece))
        if self._has_queued or self._unparsed:
            self.flow.pause_reading()

    @property
    def _has_queued(self) -> bool:
        # h11 keeps what comes after a request to itself.
        return bool(getattr(self, "pipeline", ()))

    def _look(self, n_bytes: int) -> None:
        """After some bytes: is a request whole, or are we still waiting for the rest of one?"""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        is_answering = cycle is not None and not cycle.response_complete
        if is_answering and not cycle.more_body:
            self._stop_reading()
            return
        self._start_reading()
        if is_answering or (cycle is not None and cycle.more_body):
            self._n_head_bytes = 0
            return
        self._n_head_bytes += n_bytes
        if self._n_head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"The request's headers have more than {MAX_HEAD_BYTES} bytes.", "headers_too_large")

    def _await(self) -> None:
        if not self.transport.is_closing():
            self._guard.awaited[self] = None

    def _start_reading(self) -> None:
        if self._read_timer is None and not self.transport.is_closing():
            self._await()
            self._read_timer = self.loop.call_later(self._guard.limits.read_timeout_s, self._read_overdue)

    def _stop_reading(self) -> None:
        self._guard.awaited.pop(self, None)
        self._n_head_bytes = 0
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _read_overdue(self) -> None:
        timeout_s = self._guard.limits.read_timeout_s
        if self.cycle is None and self._n_head_bytes == 0:
            # Opened ahead of need, as browsers do: nothing was asked, so nothing is answered.
            self._close()
        else:
            self._refuse(408, f"The request did not arrive within {timeout_s:g} s.", "request_timeout")

    # --- leaving ----------------------------------------------------------------------------------------------------

    def _writing_timer(self) -> asyncio.TimerHandle:
        n_unsent = self.transport.get_write_buffer_size()
        return self.loop.call_later(self._guard.limits.write_timeout_s, self._write_overdue, n_unsent)

    def _write_overdue(self, n_unsent_before: int) -> None:
        if self.transport.get_write_buffer_size() < n_unsent_before:
            self._write_timer = self._writing_timer()
            return
        logger.info("a client that reads nothing of its answer was dropped")
        self.transport.abort()

    def _stop_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Answer in place of the app, unless it has begun to, and close."""
        self._stop_reading()
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            self.transport.write(_response(status, message, code))
        if cycle is not None:
            # Whatever the app still says has no reader.
            cycle.disconnected = True
            cycle.message_event.set()
        self._close()

    def _close(self) -> None:
        """Close; but what is unsent is not kept for ever for one who does not read it."""
        self.transport.close()
        self.loop.call_later(self._guard.limits.write_timeout_s, self.transport.abort)


def _response(status: int, message: str, code: str) -> bytes:
    error_type = "service_unavailable" if status == 503 else "invalid_request_error"
    body = dumps(openai_body(message, status=status, kind=error_type, param=None, code=code))
    lines = [
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
    ]
    if status == 503:
        lines.append("retry-after: 1")
    return "\r\n".join([*lines, "", ""]).encode() + body
