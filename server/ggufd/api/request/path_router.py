"""Router for paths with parts that vary: handlers get them as they are, as texts.

FastAPI makes a field of pydantic's of each, and imports pydantic's version 1 to see that it is none of that: a
thirtieth of the start.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

_PART = re.compile(r"\{(\w+)(?::path)?\}")


class PathRouter(APIRouter):
    """FastAPI's router, of which the handlers take the request and the parts of their path by name."""

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if names := _PART.findall(path):
            options["openapi_extra"] = {**(options.get("openapi_extra") or {}), "parameters": _documented(names)}
            endpoint = _with_parts(endpoint)
        super().add_api_route(path, endpoint, **options)


def _documented(names: Sequence[str]) -> list[dict[str, Any]]:
    """Parameters of the path, as FastAPI documents them."""
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "title": name.replace("_", " ").title()},
        }
        for name in names
    ]


def _with_parts(handler: Callable[..., Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Handler that takes the request alone, with the name and the description of `handler`."""

    async def answer(request: Request) -> Response:
        return await handler(request, **request.path_params)

    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(answer, name, getattr(handler, name))
    return answer
