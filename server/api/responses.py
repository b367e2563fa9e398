"""JSON and errors as every route answers them: ASCII-safe, no NaN, OpenAI's error shape, Anthropic's on its routes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from server.api.anthropic import errors as anthropic
from server.errors import GgufdError, TryLater

_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def dumps(value: Any) -> bytes:
    """Compact JSON in ASCII. Raises ValueError on NaN and infinities, which are not JSON."""
    return _encode(value).encode()


def json_response(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`value` as a JSON response."""
    return Response(dumps(value), status, headers, "application/json")


def error_body(message: str, error_type: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error shape."""
    return {"error": {"message": message, "type": error_type, "param": param, "code": code}}


def body_of(error: GgufdError) -> dict[str, Any]:
    """OpenAI's error shape of one of our errors."""
    return error_body(error.message, error.type, param=error.param, code=error.code)


def error_response(error: GgufdError, path: str = "") -> Response:
    """One of our errors as a response to `path`, with Retry-After when it is a matter of time."""
    headers = {}
    if isinstance(error, TryLater):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    body = anthropic.error_body(error.message, error.status, param=error.param)
    return json_response(body if anthropic.is_anthropic(path) else body_of(error), status=error.status, headers=headers)
