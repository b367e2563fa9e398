"""Failures that the ingress itself tells: as an answer, or as the last event of a stream, in the shape of the API."""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.responses import Response
from starlette.types import Scope

from ggufd.api.answer.ndjson import line_bytes
from ggufd.api.answer.sse import event_bytes
from ggufd.api.anthropic import errors as anthropic
from ggufd.api.anthropic.stream import MessageEvents
from ggufd.api.http.error_shape import note_shape
from ggufd.api.http.json_response import body_of, error_response
from ggufd.api.llamacpp import errors as llamacpp
from ggufd.errors import EngineFailure, GgufdError, Unavailable

_SHAPES = (anthropic.SHAPE, llamacpp.SHAPE)
_NUMBER = re.compile(rb'"sequence_number":\s*(\d+)')

EVENTS, LINES = b"\n\n", b"\n"
"""How the events of a stream end: those of SSE, and JSON lines."""


class NoReplica(Unavailable):
    """No replica that could be asked."""

    code = "no_replica"


class StreamBroken(EngineFailure):
    """Answer that broke off after it had begun."""

    code = "replica_lost"


def broken() -> StreamBroken:
    """The error of a stream whose replica was lost."""
    return StreamBroken("The answer broke off: the server that was writing it is gone. Send the request again.")


def none_left(n_asked: int) -> NoReplica:
    """The error where no replica is left that could be asked."""
    what = "None of the servers could be reached" if n_asked else "No server is there to answer"
    return NoReplica(f"{what}. They may be starting: try again in a few seconds.", retry_after_s=2.0)


def failure(error: GgufdError, scope: Scope, request_id: str) -> Response:
    """An error as the answer to a request."""
    shape = note_shape(scope, _SHAPES)
    response = error_response(error, scope)
    for name in shape.id_headers:
        response.headers[name] = request_id
    return response


def last_event(error: GgufdError, route: str, separator: bytes, last: bytes = b"") -> bytes:
    """An error as the last event of a stream; `last` is what was sent before it."""
    if separator == LINES:
        return line_bytes({"error": error.message, "code": error.code})
    if route.endswith("/messages"):
        return MessageEvents.refusal(error)
    if route.endswith("/responses"):
        return _response_event(body_of(error), last)
    return event_bytes(body_of(error))


def refusal_event(body: bytes, route: str, separator: bytes) -> bytes:
    """An answer that refuses a request whose stream was begun already, as its last event."""
    try:
        value: Any = json.loads(body)
    except ValueError:
        return last_event(broken(), route, separator)
    if separator == LINES:
        error = value.get("error")
        return line_bytes({"error": error.get("message") if isinstance(error, dict) else error})
    if route.endswith("/messages"):
        return event_bytes(value, "error")
    if route.endswith("/responses"):
        return _response_event(value, b"")
    return event_bytes(value)


def _response_event(body: dict[str, Any], last: bytes) -> bytes:
    """The `error` event of OpenAI's Responses, with the number after the last one that was sent."""
    numbers = _NUMBER.findall(last)
    error = body.get("error") or {}
    named = {key: error.get(key) for key in ("code", "message", "param")}
    number = int(numbers[-1]) + 1 if numbers else 0
    return event_bytes({"type": "error", **named, **body, "sequence_number": number}, "error")
