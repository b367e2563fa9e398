"""`/v1/streams`: go on with a stream that outlived its client, end it, list one's own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from starlette.responses import Response

from ggufd.api.http.json_response import json_response
from ggufd.api.http.record import record_of
from ggufd.api.request.path_router import PathRouter
from ggufd.api.services.services import caller_of, services_of
from ggufd.api.streams.errors import StreamGone
from ggufd.api.streams.kept_stream import KeptStream
from ggufd.api.streams.response import STREAM_HEADER, ReaderResponse, owner_of, store_of
from ggufd.errors import InvalidRequest

router = PathRouter(tags=["streams"])

_HEADER, _QUERY = "Last-Event-ID", "last_event_id"
_MAX_DIGITS = 15

EVENTS: dict[int | str, dict[str, Any]] = {200: {"description": "The events.", "content": {"text/event-stream": {}}}}
"""What /docs says of a route that sends events."""


@router.get("/streams")
async def list_streams(request: Request) -> Response:
    """Resumable streams of the caller's key, the oldest first; nobody sees another's."""
    streams = store_of(request).of(owner_of(caller_of(request)))
    kept_s = services_of(request).config.streams.kept_s
    return json_response({"object": "list", "data": [_json(stream, kept_s) for stream in streams]})


@router.get("/streams/{stream_id}", responses=EVENTS)
async def resume_stream(request: Request, stream_id: str) -> Response:
    """Events of a stream after `Last-Event-ID` (or the parameter `last_event_id`), all without one; then what comes.

    204 when the stream has ended and nothing is left to send, 410 when what is asked for is not kept any more.
    """
    stream = store_of(request).get(owner_of(caller_of(request)), stream_id)
    last = read_id(request.headers, _HEADER)
    return resumed(request, stream, next_after(stream, read_id(request.query_params, _QUERY) if last is None else last))


@router.delete("/streams/{stream_id}")
async def delete_stream(request: Request, stream_id: str) -> Response:
    """End a stream and its generation, and forget its events."""
    store = store_of(request)
    store.forget(store.get(owner_of(caller_of(request)), stream_id))
    return json_response({"id": stream_id, "object": "stream", "deleted": True})


def resumed(request: Request, stream: KeptStream, number: int, skip: int = 0) -> Response:
    """The response that goes on from an event."""
    store_of(request).n_resumed += 1
    record = record_of(request)
    record.ignored += stream.head.ignored
    if record.method == "HEAD" or (number == stream.log.next and not stream.is_running):
        status = 200 if record.method == "HEAD" else 204
        return Response(status_code=status, headers={STREAM_HEADER: stream.head.stream_id})
    return ReaderResponse(stream, number, skip, ping_s=services_of(request).config.ping_s)


def read_id(sent: Mapping[str, str], name: str) -> int | None:
    """The number of the last event that the client has, if it says one. Raises InvalidRequest."""
    text = sent.get(name, "")
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > _MAX_DIGITS:
        raise InvalidRequest(f"'{name}': expected the id of an event, which is a number.", param=name)
    return int(text)


def next_after(stream: KeptStream, last: int | None) -> int:
    """The number of the first event to be sent. Raises InvalidRequest or StreamGone."""
    log, number = stream.log, 0 if last is None else last + 1
    if number > log.next:
        raise InvalidRequest(
            f"This stream has sent {log.next} events so far, the first with the id 0; asked for those after {last}.",
            param=_HEADER,
        )
    if number < log.first:
        raise StreamGone.beginning(log.first)
    return number


def _json(stream: KeptStream, kept_s: float) -> dict[str, Any]:
    log, now = stream.log, time.monotonic()
    ended = {} if stream.is_running else {"expires_in_s": round(max(0.0, stream.ended_s + kept_s - now), 1)}
    return {
        "id": stream.head.stream_id,
        "object": "stream",
        "status": "running" if stream.is_running else "ended",
        "path": stream.head.path,
        "conversation_id": stream.head.conversation_id or None,
        "first_event_id": log.first if log.next > log.first else None,
        "last_event_id": log.next - 1 if log.next else None,
        "bytes": log.n_bytes,
        "readers": stream.n_readers,
        "age_s": round(now - stream.started_s, 1),
        **ended,
    }
