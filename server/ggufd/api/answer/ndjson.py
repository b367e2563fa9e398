"""NDJSON framing of a stream, as Ollama's clients read it: one JSON object a line, no pings. A disconnect aborts the
request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Protocol

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ggufd.api.answer.generation import Generation
from ggufd.api.http.json_response import dumps
from ggufd.api.http.requestlog import log_crash
from ggufd.engine.messages.events import RequestEvent
from ggufd.errors import GgufdError

logger = logging.getLogger(__name__)


def line_bytes(value: object) -> bytes:
    """One line."""
    return dumps(value) + b"\n"


class Lines(Protocol):
    """Line format of one API: the lines for an event, or b"" when it is not sent."""

    def feed(self, first: int, event: RequestEvent) -> bytes: ...


class LineStream(StreamingResponse):
    """NDJSON response that streams a generation."""

    def __init__(self, generation: Generation, lines: Lines) -> None:
        super().__init__(_lines(generation, lines), media_type="application/x-ndjson")
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._generation:
            sending = asyncio.create_task(self.stream_response(send))
            watching = asyncio.create_task(self.listen_for_disconnect(receive))
            try:
                await asyncio.wait({sending, watching}, return_when=asyncio.FIRST_COMPLETED)
                if sending.done():
                    sending.result()
            finally:
                sending.cancel()
                watching.cancel()
                await asyncio.gather(sending, watching, return_exceptions=True)


async def _lines(generation: Generation, lines: Lines) -> AsyncIterator[bytes]:
    try:
        async for first, events in generation.batches():
            for event in events:
                # Each line is a write of its own: some clients take what one read brings for one line.
                for line in lines.feed(first, event).splitlines(keepends=True):
                    yield line
    except GgufdError as error:
        yield _failed(error)
    except Exception as error:
        log_crash(logger, "a stream failed", error)
        yield _failed(GgufdError("The server failed to write this answer. Send it again."))


def _failed(error: GgufdError) -> bytes:
    """The last line after an error: a text, as Ollama has it, since its Python client fails on an object.

    The code beside it is ours: the ingress of a cluster tells by it whether another server may do better.
    """
    return line_bytes({"error": error.message, "code": error.code})
