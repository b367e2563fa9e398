"""Requests as people and probes make them: doubled slashes, slashes at the end, HEAD where there is GET."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

_SLASHES = re.compile(r"/{2,}")


class LenientMiddleware:
    """Makes `/v1//chat/completions/` the same as `/v1/chat/completions`, and lets GET routes answer HEAD.

    The body that a GET route writes then is dropped by the HTTP server, which knows the true method.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path, method = scope["path"], scope["method"]
            if "//" in path or (path.endswith("/") and path != "/"):
                path = _SLASHES.sub("/", path).rstrip("/") or "/"
            scope = {**scope, "path": path, "method": "GET" if method == "HEAD" else method}
        await self._app(scope, receive, send)
