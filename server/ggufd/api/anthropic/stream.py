"""SSE stream of a message: Anthropic's named events, its pings and its errors."""

from __future__ import annotations

from collections.abc import Iterable

from sse_starlette import ServerSentEvent

from ggufd.api.answer.blocks import Event
from ggufd.api.answer.sse import ChunkFormat, event_bytes
from ggufd.api.anthropic.errors import error_body
from ggufd.api.anthropic.message import MessageWriter
from ggufd.engine.messages.events import Output, RequestEvent
from ggufd.errors import GgufdError


class MessageEvents(ChunkFormat):
    """Named events, from `message_start` to `message_stop`."""

    ping = ServerSentEvent(event="ping", data='{"type": "ping"}', sep="\n")

    def __init__(self, writer: MessageWriter) -> None:
        self._writer = writer
        self.response_id = writer.message_id

    def begin(self) -> bytes:
        return _bytes(self._writer.begin())

    def feed(self, first: int, event: RequestEvent) -> bytes:
        return _bytes(self._writer.feed(event)) if isinstance(event, Output) else b""

    async def finish(self) -> bytes:
        return _bytes(self._writer.end())

    @staticmethod
    def refusal(error: GgufdError) -> bytes:
        return _bytes([error_body(error.message, status=error.status, param=error.param)])


def _bytes(events: Iterable[Event]) -> bytes:
    return b"".join([event_bytes(event, event["type"]) for event in events])
