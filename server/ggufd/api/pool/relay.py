"""Stream that is begun before its model is loaded: SSE comments that tell of the wait, then what the route sends.

A stream that wants to know (`report_queue`) is begun at once. Any other is begun only after a while, before proxies and
clients take the silence for a fault: until then a refusal still has its status. What is refused later is an event.
"""

from __future__ import annotations

import json
from typing import Any, Protocol

from starlette.types import Message, Scope, Send

from ggufd.api.http.json_response import dumps
from ggufd.model_pool.pool import ModelTurn

_BEGIN_AFTER_S = 15.0
_PING = b": ping\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class QueueWish(Protocol):
    """What the request says about its waiting."""

    @property
    def tells_queue(self) -> bool: ...


class WaitRelay:
    """`send` of one response, and what is sent before it. `can_begin` says whether it is to be a stream of SSE."""

    def __init__(self, send: Send, scope: Scope, *, can_begin: bool, wish: QueueWish) -> None:
        self._send = send
        self._path: str = scope["path"]
        self._can_begin = can_begin
        self._tells = wish.tells_queue
        self._is_begun = False
        self._error: bytearray | None = None

    async def tell(self, turn: ModelTurn) -> None:
        """Tell of the wait, where that is wanted or has become long."""
        if not self._can_begin or not (self._tells or turn.waited_s >= _BEGIN_AFTER_S):
            return
        if not self._is_begun:
            self._is_begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await self._send({"type": "http.response.body", "body": self._comment(turn), "more_body": True})

    def _comment(self, turn: ModelTurn) -> bytes:
        """The comment of a request that waits in the queue, with the model that it waits for."""
        if not self._tells:
            return _PING
        position, wait_s = turn.forecast
        name = "" if turn.model is None else f" {turn.model}".encode("ascii", "replace").decode()
        return f": queue position={position} eta_s={wait_s:.1f} waiting for model{name}, {wait_s:.0f} s\n\n".encode()

    async def send(self, message: Message) -> None:
        """As `send`; in a stream that was begun an error becomes its last event."""
        if not self._is_begun:
            await self._send(message)
        elif message["type"] == "http.response.start":
            if not _is_stream(message):
                self._error = bytearray()
        elif self._error is None:
            await self._send(message)
        elif message["type"] == "http.response.body":
            self._error += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send({"type": "http.response.body", "body": self._event(bytes(self._error))})

    def _event(self, body: bytes) -> bytes:
        try:
            value: Any = json.loads(body)
        except ValueError:
            value = {"error": {"message": "The server failed to answer. Send it again."}}
        if self._path.endswith("/messages"):
            return b"event: error\ndata: " + dumps(value) + b"\n\n"
        if self._path.endswith("/responses"):
            error = value.get("error", {})
            named = {
                "type": "error",
                "sequence_number": 0,
                **{key: error.get(key) for key in ("code", "message", "param")},
            }
            return b"event: error\ndata: " + dumps(named) + b"\n\n"
        return b"data: " + dumps(value) + b"\n\n"


def _is_stream(start: Message) -> bool:
    headers = {bytes(name).lower(): bytes(value) for name, value in start.get("headers", ())}
    return bool(start["status"] == 200 and headers.get(b"content-type", b"").startswith(b"text/event-stream"))
