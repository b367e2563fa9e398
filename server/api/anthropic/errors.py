"""Errors as Anthropic writes them, on its routes. Knows no response."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

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


def error_body(message: str, status: int, *, param: str | None = None) -> dict[str, Any]:
    """The body of an error. `param` is ours: it names the field."""
    kind = _TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
    error = {"type": kind, "message": message}
    return {"type": "error", "error": error if param is None else {**error, "param": param}}
