"""API keys: who may ask. Without configured keys everybody may, whatever they send as a key."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.responses import error_response
from server.errors import Unauthorized

DOCS_FILES = "/docs/files"
"""Where the scripts of /docs lie."""

PUBLIC_PATHS = frozenset(
    {"/health", "/health/live", "/health/ready", "/ready", "/v1/health", "/docs", "/openapi.json", "/favicon.ico"}
)
"""Paths that need no key: probes have none, and a browser cannot send one before the page is there."""

_KEY_NAME = "ggufd.key"


def key_of(request: Request) -> str:
    """A name for who asks, "" when there are no keys. Not the key itself: it is logged."""
    name: str = request.scope.get(_KEY_NAME, "")
    return name


class KeyMiddleware:
    """Lets requests in that carry one of `keys`, as `Authorization: Bearer ...` or `x-api-key`."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._names = [(key.encode(), hashlib.sha256(key.encode()).hexdigest()[:12]) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._names or _is_public(scope):
            await self._app(scope, receive, send)
            return
        sent = _sent_keys(Headers(scope=scope))
        name = self._name_of(sent)
        if name is None:
            await _refusal(bool(sent))(scope, receive, send)
            return
        scope[_KEY_NAME] = name
        await self._app(scope, receive, send)

    def _name_of(self, sent: Sequence[bytes]) -> str | None:
        """Compares with every key whatever is found, so that time tells nothing."""
        found = None
        for key, name in self._names:
            for candidate in sent:
                if secrets.compare_digest(key, candidate):
                    found = name
        return found


def _is_public(scope: Scope) -> bool:
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return path in PUBLIC_PATHS or path.startswith(f"{DOCS_FILES}/") or scope["method"] == "OPTIONS"


def _sent_keys(headers: Headers) -> list[bytes]:
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    sent = [headers.get("x-api-key", "")]
    if scheme.lower() == "bearer":
        sent.append(bearer)
    return [key.strip().encode("latin-1", "replace") for key in sent if key.strip()]


def _refusal(has_key: bool) -> ASGIApp:
    what = "The API key that was sent is wrong." if has_key else "No API key was sent."
    response = error_response(
        Unauthorized(f"{what} Send one that this server was started with, as 'Authorization: Bearer KEY'.")
    )
    response.headers["WWW-Authenticate"] = "Bearer"
    return response
