"""Errors as Anthropic writes them, on its routes. Knows no response."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ggufd.api.http.error_shape import REQUEST_ID_HEADER, ErrorShape

_ROUTES = re.compile(r"/messages(/|$)")

_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def is_anthropic(path: str) -> bool:
    """Whether a path is of this API, or would be if there were such a route."""
    return _ROUTES.search(path) is not None


_CODES = frozenset(("thread_unsupported_request",))
"""What Anthropic's clients look for in the details."""


def error_body(
    message: str,
    *,
    status: int,
    kind: str = "",
    param: str | None = None,
    code: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The body of an error. `param` is ours: it names the field. OpenAI's `kind` says nothing here: the status does."""
    own = _TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
    error: dict[str, Any] = {"type": own, "message": message}
    if param is not None:
        error["param"] = param
    if code in _CODES:
        error["details"] = {"error_code": code, "unsupported": [param]}
    return {"type": "error", "error": error}


SHAPE = ErrorShape(is_anthropic, error_body, (REQUEST_ID_HEADER, "request-id"))
"""The shape of this family's errors. Its clients read a request's id from a header of their own."""
