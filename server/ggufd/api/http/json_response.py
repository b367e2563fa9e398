"""JSON and error responses of every route: ASCII, no NaN, errors in the format of the route's family."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Scope

from ggufd.api.http.error_shape import openai_body, shape_of
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


def body_of(error: GgufdError) -> dict[str, Any]:
    """OpenAI's error body of one of our errors."""
    return openai_body(error.message, status=error.status, kind=error.type, param=error.param, code=error.code)


def error_response(error: GgufdError, scope: Scope) -> Response:
    """One of our errors as the response to a request, with Retry-After or WWW-Authenticate where they belong."""
    headers = {}
    if isinstance(error, TryLater):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    body = shape_of(scope).body(
        error.message,
        status=error.status,
        kind=error.type,
        param=error.param,
        code=error.code,
        details=error.details,
    )
    return json_response(body, status=error.status, headers=headers)
