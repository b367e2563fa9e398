"""Delivery of one answer to a client: its head once, then comments, then what is real, whichever replica it is from."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import Send

from ggufd.cluster.relay.failures import EVENTS, LINES, last_event, refusal_event
from ggufd.errors import GgufdError

_SSE, _NDJSON = "text/event-stream", "application/x-ndjson"


def separator_of(content_type: str) -> bytes:
    """What ends an event of a stream of this media type; b"" where it is no stream."""
    kind = content_type.partition(";")[0].strip().lower()
    return EVENTS if kind == _SSE else LINES if kind == _NDJSON else b""


class Delivery:
    """One answer. `has_begun` says that something real was sent, `first`, after which no other replica can answer.

    `status` is that of the head, 0 before it is sent.
    """

    def __init__(self, send: Send, route: str) -> None:
        self._send = send
        self._route = route
        self._last = b""
        self.first = b""
        self.separator = b""
        self.status = 0
        self.has_head = False
        self.has_begun = False

    async def head(self, status: int, headers: Iterable[tuple[bytes, bytes]], separator: bytes) -> None:
        """Send the head, unless that of an earlier replica was sent."""
        if not self.has_head:
            self.has_head, self.status, self.separator = True, status, separator
            await self._send({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def comment(self, data: bytes) -> None:
        """Send what is no part of the answer."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def real(self, data: bytes) -> None:
        """Send some of the answer: whole events, where it is a stream."""
        self._note(data)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Send the last of the answer."""
        self._note(data)
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    def _note(self, data: bytes) -> None:
        if not self.has_begun:
            self.has_begun, self.first = True, data
        self._last = data

    async def refuse(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes, separator: bytes = b""
    ) -> None:
        """Send a replica's refusal: as its answer, or as the last event of a stream that was begun.

        `separator` is that of a stream which consists of the refusal alone.
        """
        is_event = bool(separator)
        if self.has_head and not is_event:
            body = refusal_event(body, self._route, self.separator)
        await self.head(status, headers, separator)
        await self.end(body)

    async def break_off(self, error: GgufdError) -> None:
        """End a stream with an error event. Any other answer is left incomplete: the server closes its connection."""
        if self.separator:
            await self.end(last_event(error, self._route, self.separator, self._last))
