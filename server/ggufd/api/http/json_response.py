"""JSON and errors as every route answers them: ASCII-safe, no NaN, OpenAI's error shape, Anthropic's on its routes."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from starlette.responses import Response

from ggufd.api.anthropic import errors as anthropic
from ggufd.errors import GgufdError, TryLater, Unauthorized

_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode

_AT_ONCE = 5000
"""Items of a list that are written without a pause: some milliseconds."""

Read = Callable[[Sequence[Any]], Awaitable[list[Any]]]


def dumps(value: Any) -> bytes:
    """Compact JSON in ASCII. Raises ValueError on NaN and infinities, which are not JSON."""
    return _encode(value).encode()


def json_response(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`value` as a JSON response."""
    return Response(dumps(value), status, headers, "application/json")


async def list_response(name: str, items: Sequence[Any], rest: Mapping[str, Any], read: Read | None = None) -> Response:
    """`{name: items, **rest}` as a JSON response. A long list is written in pieces: a probe waits for one of them.

    `read` makes what is shown of such a piece; else it is the items themselves.
    """
    written = []
    for start in range(0, len(items), _AT_ONCE):
        piece = items[start : start + _AT_ONCE]
        written.append(dumps(piece if read is None else await read(piece))[1:-1])
        await asyncio.sleep(0)
    head = dumps(rest)[:-1] + (b"," if rest else b"")
    body = b"%s%s:[%s]}" % (head, dumps(name), b",".join(written))
    return Response(body, media_type="application/json")


def error_body(message: str, error_type: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error shape."""
    return {"error": {"message": message, "type": error_type, "param": param, "code": code}}


def body_of(error: GgufdError) -> dict[str, Any]:
    """OpenAI's error shape of one of our errors."""
    return error_body(error.message, error.type, param=error.param, code=error.code)


def error_response(error: GgufdError, path: str = "") -> Response:
    """One of our errors as a response to `path`, with Retry-After when it is a matter of time, or how to come in."""
    headers = {}
    if isinstance(error, TryLater):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    body = anthropic.error_body(error.message, error.status, param=error.param, code=error.code)
    return json_response(body if anthropic.is_anthropic(path) else body_of(error), status=error.status, headers=headers)
