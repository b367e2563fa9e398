"""SSE framing of a stream: pre-encoded chunks, keep-alive pings, the error event, and the abort on disconnect.

sse-starlette does the protocol; it is given bytes that are ready to be sent. Knows no route's chunk shape: that is a
`ChunkFormat`.
"""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import AppStatus
from starlette.types import Message, Receive, Scope, Send

from ggufd.api.answer.generation import Generation
from ggufd.api.http.json_response import body_of, dumps
from ggufd.api.http.requestlog import log_crash
from ggufd.engine.messages.events import Queued, RequestEvent
from ggufd.errors import GgufdError

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"

_quote = json.encoder.encode_basestring_ascii


def event_bytes(value: Any, name: str = "") -> bytes:
    """One event that holds `value` as JSON; the APIs that call their events by name give one."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + dumps(value) + b"\n\n"


class Envelope:
    """SSE event template of which only one text changes: everything around it is encoded once.

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


class ChunkFormat(ABC):
    """Chunk format of one API. Every method returns encoded events, b"" when nothing is to be sent.

    `response_id` is the id that the answer goes by; empty where its API has none.
    """

    response_id = ""
    ping = ServerSentEvent(comment="ping", sep="\n")
    """What a silent stream carries."""

    def begin(self) -> bytes:
        """First events, before the engine has done anything."""
        return b""

    @abstractmethod
    def feed(self, first: int, event: RequestEvent) -> bytes:
        """Events for one event of the engine. `first` is the choice that its index counts from."""

    async def finish(self) -> bytes:
        """Last events, when every sequence has finished."""
        return b""

    @staticmethod
    def refusal(error: GgufdError) -> bytes:
        """Error event that depends on nothing that was sent before."""
        return event_bytes(body_of(error))

    def fail(self, error: GgufdError) -> bytes:
        """Last events, when an error ends the stream."""
        return self.refusal(error)


class SseResponse(EventSourceResponse):
    """SSE response of encoded events. It carries `ping` after `ping_s` of silence; with 0 it carries nothing."""

    def __init__(
        self,
        events: AsyncIterator[bytes],
        ping: ServerSentEvent | bytes,
        *,
        ping_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        # sse-starlette sends bytes as they are, though it asks for an event.
        make: Callable[[], Any] = lambda: ping  # noqa: E731
        super().__init__(events, ping=ping_s, sep="\n", headers=headers, ping_message_factory=make)

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        """Sends without the cancel scope that a send timeout needs: none is set, and it is a fifth of a chunk's cost.

        Should sse-starlette drop this method of its own, the override does nothing.
        """
        await send(message)


class EventStream(SseResponse):
    """SSE response that streams a generation. However it ends, the engine's requests end with it."""

    def __init__(
        self,
        generation: Generation,
        chunks: ChunkFormat,
        *,
        ping_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(events_of(generation, chunks), chunks.ping, ping_s=ping_s, headers=headers)
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._generation:
            await super().__call__(scope, receive, send)


def _told(chunks: ChunkFormat, first: int, event: RequestEvent) -> bytes:
    """Events for the client; its place in the queue is an SSE comment, which other clients skip."""
    if isinstance(event, Queued):
        return f": queue position={event.turn.position} eta_s={event.turn.wait_s:.1f}\n\n".encode()
    return chunks.feed(first, event)


async def events_of(generation: Generation, chunks: ChunkFormat) -> AsyncIterator[bytes]:
    """Encoded events of a generation that was entered, and comments; whole ones each time."""
    try:
        if data := chunks.begin():
            yield data
        async for first, events in generation.batches():
            if data := b"".join([_told(chunks, first, event) for event in events]):
                yield data
        if data := await chunks.finish():
            yield data
    except GgufdError as error:
        yield chunks.fail(error)
    except Exception as error:
        log_crash(logger, "a stream failed", error)
        yield chunks.fail(GgufdError("The server failed to write this answer. Send it again."))


def let_streams_finish() -> None:
    """Keep sse-starlette from cutting streams at SIGTERM: who drains is the engine's client, with its deadline."""
    AppStatus.enable_automatic_graceful_drain = False
