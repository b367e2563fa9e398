"""`GET /v1/live`: the live view as server-sent events, a snapshot first and then at most one message a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from fastapi import APIRouter, Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response

from ggufd.api.http.auth import key_of
from ggufd.api.http.json_response import body_of, dumps
from ggufd.api.live.collector import Collector
from ggufd.api.live.sight import Sight
from ggufd.api.live.view import LiveMessages, Seen
from ggufd.api.services.caller import Caller
from ggufd.api.services.services import caller_of, services_of
from ggufd.errors import GgufdError

router = APIRouter(tags=["operations"])

_EARLY_S = 0.05
"""Looks are a second apart, but for some milliseconds."""

_PING_S = 15


@dataclass(frozen=True)
class Live:
    """The live view of one application: `app.state.live`."""

    collector: Collector
    messages: LiveMessages


def live_of(request: Request) -> Live:
    """The live view of this request's application."""
    live: Live = request.app.state.live
    return live


@router.get("/live", responses={200: {"content": {"text/event-stream": {}}}})
async def live(request: Request) -> Response:
    """What the server is doing, as a stream of events: a `live.snapshot`, then a `live.update` a second.

    Slots, queue, keys and cache are whole in every message; `history.rows`, `requests` and `events` are what was added
    since the message before. Without an admin's key they are of the caller's own requests; `totals`, `history` and
    `events` are of all. The history has a row a second of the last ten minutes, in the order of `history.columns`.
    Nothing that anybody wrote is in it.
    """
    return EventSourceResponse(
        _events(request, caller_of(request)),
        ping=_PING_S,
        sep="\n",
        ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _events(request: Request, caller: Caller) -> AsyncIterator[bytes]:
    ended: asyncio.Future[GgufdError] = asyncio.get_running_loop().create_future()
    collector = live_of(request).collector

    def end(error: GgufdError) -> None:
        if not ended.done():
            ended.set_result(error)

    with services_of(request).revocations.during(caller, end), collector.viewer():
        async for message in _messages(request, ended):
            yield b"data: " + message + b"\n\n"
        if ended.done():
            yield b"data: " + dumps(body_of(ended.result())) + b"\n\n"


async def _messages(request: Request, ended: asyncio.Future[GgufdError]) -> AsyncIterator[bytes]:
    """Messages until the viewer's key ends, or the application does."""
    live, is_admin, seen = live_of(request), key_of(request).is_admin, Seen()
    if live.collector.tick == 0 or live.collector.state is None:
        await _tick(live.collector, ended)
    while not (ended.done() or live.collector.is_over):
        # The rights are those of the settings now: another model may be served by then.
        now = live.messages.position()
        yield live.messages.update(services_of(request), Sight.of(request), is_admin=is_admin, seen=seen)
        seen, sent_s = now, time.monotonic()
        while not ended.done() and time.monotonic() - sent_s < live.collector.interval_s - _EARLY_S:
            await _tick(live.collector, ended)


async def _tick(collector: Collector, ended: asyncio.Future[GgufdError]) -> None:
    ticking = asyncio.ensure_future(collector.next_tick())
    try:
        await asyncio.wait((ticking, ended), return_when=asyncio.FIRST_COMPLETED)
    finally:
        ticking.cancel()
