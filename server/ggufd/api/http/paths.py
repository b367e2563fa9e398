"""Path normalization: doubled and trailing slashes, the prefix of a proxy, and HEAD for GET routes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

_SLASHES = re.compile(r"/{2,}")


def own_path(scope: Mapping[str, Any]) -> str:
    """The path of a request as the routes know it, without the prefix of a proxy."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path.removeprefix(root) if root and path.startswith(f"{root}/") else path


class PathMiddleware:
    """Middleware that reads `/v1//chat/completions/` as `/v1/chat/completions`.

    `root_path` is the prefix that a proxy shows us under; it may take the prefix off or leave it on.
    """

    def __init__(self, app: ASGIApp, root_path: str = "") -> None:
        self._app = app
        self._root = root_path.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            # The same scope goes on: who answers for a crash, outside of all middleware, reads what is noted in it.
            scope["path"] = self._path(scope["path"])
            scope["root_path"] = self._root or scope.get("root_path", "")
        await self._app(scope, receive, send)

    def _path(self, path: str) -> str:
        if "//" in path:
            path = _SLASHES.sub("/", path)
        # A server that is told the prefix puts it before every path, a second time where the proxy left it on.
        if self._root and path.startswith(f"{self._root}{self._root}/"):
            path = path.removeprefix(self._root)
        is_front = path in ("/", f"{self._root}/")
        return path if is_front else path.removesuffix("/")


class HeadMiddleware:
    """Middleware that lets GET routes answer HEAD.

    The body that a route writes then is dropped by the HTTP server, which knows the true method.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)
