"""llama-server's names for resumable streams: `/v1/stream` by the client's conversation id and by bytes.

A stream is found here when its request had the header `X-Conversation-Id`. Unlike there, it is found by its own key
only, and what is not kept any more is a 410.
"""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ggufd.api.http.body import read_json
from ggufd.api.http.json_response import json_response
from ggufd.api.request.docs import documented
from ggufd.api.request.validation import Body, validate
from ggufd.api.services.services import caller_of, services_of
from ggufd.api.streams.errors import no_stream
from ggufd.api.streams.kept_stream import KeptStream
from ggufd.api.streams.response import owner_of, store_of
from ggufd.api.streams.routes import EVENTS, resumed
from ggufd.errors import InvalidRequest, NotFound

router = APIRouter(tags=["streams"])

_MAX_DIGITS = 15
_MAX_IDS = 1000


class LookupRequest(Body):
    """Ids of conversations, with or without the `::MODEL` that clients append."""

    conversation_ids: list[str]


@router.get("/stream", responses=EVENTS)
async def read_conversation(request: Request) -> Response:
    """The stream of the conversation `conv_id` from the byte `from` on, the first is 0; then what comes."""
    stream = _of(request, _conversation_id(request))
    text = request.query_params.get("from") or "0"
    if not text.isascii() or not text.isdecimal() or len(text) > _MAX_DIGITS:
        raise InvalidRequest("'from': expected a number of bytes.", param="from")
    offset = int(text)
    if offset > stream.log.n_sent_bytes:
        sent = stream.log.n_sent_bytes
        raise InvalidRequest(f"'from': this stream has sent {sent} bytes so far, got {offset}.", param="from")
    return resumed(request, stream, *stream.log.place_of(offset))


@router.delete("/stream", status_code=204)
async def end_conversation(request: Request) -> Response:
    """End the stream of the conversation `conv_id`, if there is one."""
    try:
        store_of(request).forget(_of(request, _conversation_id(request)))
    except NotFound:
        return Response(status_code=204)
    return Response(status_code=204)


@router.post("/streams/lookup", **documented(LookupRequest, {"one": {"conversation_ids": ["a"]}}))
async def lookup(request: Request) -> Response:
    """The streams of these conversations, as far as they are the caller's own."""
    body = await read_json(request, services_of(request).config.max_body_bytes)
    wanted = validate(LookupRequest, body, {}).conversation_ids
    if len(wanted) > _MAX_IDS:
        raise InvalidRequest(f"'conversation_ids': expected at most {_MAX_IDS}.", param="conversation_ids")
    streams = store_of(request).of(owner_of(caller_of(request)))
    found = [stream for stream in streams if any(_is_of(stream.head.conversation_id, one) for one in wanted)]
    return json_response([_json(stream) for stream in found])


def _conversation_id(request: Request) -> str:
    conversation_id = request.query_params.get("conv_id", "")
    if not conversation_id:
        raise InvalidRequest("'conv_id': is required but missing.", param="conv_id")
    return conversation_id


def _of(request: Request, conversation_id: str) -> KeptStream:
    """The caller's stream of a conversation. Raises NotFound."""
    for stream in store_of(request).of(owner_of(caller_of(request))):
        if stream.head.conversation_id == conversation_id:
            return stream
    raise no_stream(conversation_id, services_of(request).config.streams.kept_s)


def _is_of(conversation_id: str, wanted: str) -> bool:
    return bool(wanted) and (conversation_id == wanted or conversation_id.startswith(f"{wanted}::"))


def _json(stream: KeptStream) -> dict[str, Any]:
    """Times as there: seconds since 1970, 0 of what has not ended."""
    to_date = time.time() - time.monotonic()
    return {
        "conversation_id": stream.head.conversation_id,
        "is_done": not stream.is_running,
        "total_bytes": stream.log.n_sent_bytes,
        "started_at": int(stream.started_s + to_date),
        "completed_at": 0 if stream.is_running else int(stream.ended_s + to_date),
    }
