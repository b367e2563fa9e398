"""Outputs to server-sent events: the prepared envelope, pings, the error event, and the abort when a client leaves.

sse-starlette does the protocol; it is given bytes that are ready to be sent. Knows no route's chunk shape: that is a
`ChunkFormat`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import AppStatus
from starlette.types import Message, Receive, Scope, Send

from server.api.generation import Generation
from server.api.responses import body_of, dumps
from server.engine.messages import RequestEvent
from server.errors import GgufdError

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"

_quote = json.encoder.encode_basestring_ascii


def event_bytes(value: Any) -> bytes:
    """One event that holds `value` as JSON."""
    return b"data: " + dumps(value) + b"\n\n"


class Envelope:
    """An event of which only one text changes: everything round it is encoded once.

    `template` holds the string `SLOT` where the text goes.
    """

    SLOT = "\x00text\x00"

    def __init__(self, template: Any) -> None:
        before, after = json.dumps(template, allow_nan=False, separators=(",", ":")).split(_quote(self.SLOT))
        self._before = f"data: {before}"
        self._after = f"{after}\n\n"

    def wrap(self, text: str) -> bytes:
        """The event with `text` in it."""
        return (self._before + _quote(text) + self._after).encode("ascii")


class ChunkFormat(Protocol):
    """One API's chunks. `feed` returns the bytes for an event, or b"" when the client is told nothing of it.

    `first` is the choice that the event's index counts from.
    """

    def feed(self, first: int, event: RequestEvent) -> bytes: ...


class EventStream(EventSourceResponse):
    """The response that streams a generation. However it ends, the engine's work for it ends with it."""

    def __init__(
        self,
        generation: Generation,
        chunks: ChunkFormat,
        *,
        ping_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            _events(generation, chunks), ping=ping_s, sep="\n", headers=headers, ping_message_factory=_ping
        )
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._generation:
            await super().__call__(scope, receive, send)

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        """Sends without the cancel scope that a send timeout needs: none is set, and it is a fifth of a chunk's cost.

        Should sse-starlette drop this method of its own, the override does nothing.
        """
        await send(message)


def _ping() -> ServerSentEvent:
    return ServerSentEvent(comment="ping", sep="\n")


async def _events(generation: Generation, chunks: ChunkFormat) -> AsyncIterator[bytes]:
    try:
        async for first, events in generation.batches():
            if data := b"".join([chunks.feed(first, event) for event in events]):
                yield data
    except GgufdError as error:
        yield event_bytes(body_of(error))
    except Exception:
        logger.exception("A stream failed")
        yield event_bytes(body_of(GgufdError("The server failed to write this answer. Send it again.")))


def let_streams_finish() -> None:
    """Keep sse-starlette from cutting streams at SIGTERM: who drains is the engine's client, with its deadline."""
    AppStatus.enable_automatic_graceful_drain = False
