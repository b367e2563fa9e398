"""SSE stream of a response: OpenAI's events with sequence numbers, the whole object first and last."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ggufd.api.answer.blocks import Event
from ggufd.api.answer.sse import ChunkFormat, event_bytes
from ggufd.api.http.json_response import body_of
from ggufd.api.openai.responses.response import ResponseObject, ResponseWriter
from ggufd.engine.messages.events import Output, RequestEvent
from ggufd.errors import GgufdError


class ResponseEvents(ChunkFormat):
    """Named events. `complete` makes the whole response at the end, when everything before it is done."""

    def __init__(self, writer: ResponseWriter, complete: Callable[[], Awaitable[ResponseObject]]) -> None:
        self.response_id = writer.response_id
        self._writer = writer
        self._complete = complete
        self._n_sent = 0

    def begin(self) -> bytes:
        started = self._writer.started()
        return self._named("response.created", response=started) + self._named("response.in_progress", response=started)

    def feed(self, first: int, event: RequestEvent) -> bytes:
        if not isinstance(event, Output):
            return b""
        return b"".join([self._bytes(one) for one in self._writer.feed(event)])

    async def finish(self) -> bytes:
        response = await self._complete()
        return self._named(f"response.{response['status']}", response=response)

    def fail(self, error: GgufdError) -> bytes:
        """The failed object, and the error once more in the shape at which OpenAI's clients raise."""
        failed = self._named("response.failed", response=self._writer.failed(error))
        shown = {"code": error.code, "message": error.message, "param": error.param}
        return failed + self._named("error", **shown, **body_of(error))

    def _named(self, kind: str, **more: Any) -> bytes:
        return self._bytes({"type": kind, **more})

    def _bytes(self, event: Event) -> bytes:
        number, self._n_sent = self._n_sent, self._n_sent + 1
        return event_bytes({**event, "sequence_number": number}, event["type"])
