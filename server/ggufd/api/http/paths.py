"""Path normalization: doubled and trailing slashes, and HEAD for GET routes."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

_SLASHES = re.compile(r"/{2,}")


class PathMiddleware:
    """Middleware that reads `/v1//chat/completions/` as `/v1/chat/completions`, and lets GET routes answer HEAD.

    The body that a GET route writes then is dropped by the HTTP server, which knows the true method. `root_path` is the
    prefix that a proxy shows us under; it may take the prefix off or leave it on.
    """

    def __init__(self, app: ASGIApp, root_path: str = "") -> None:
        self._app = app
        self._root = root_path.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            method = scope["method"]
            scope = {
                **scope,
                "path": self._path(scope["path"]),
                "root_path": self._root or scope.get("root_path", ""),
                "method": "GET" if method == "HEAD" else method,
            }
        await self._app(scope, receive, send)

    def _path(self, path: str) -> str:
        if "//" in path:
            path = _SLASHES.sub("/", path)
        # A server that is told the prefix puts it before every path, a second time where the proxy left it on.
        if self._root and path.startswith(f"{self._root}{self._root}/"):
            path = path.removeprefix(self._root)
        is_front = path in ("/", f"{self._root}/")
        return path if is_front else path.removesuffix("/")
