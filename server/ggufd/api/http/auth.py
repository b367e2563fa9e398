"""Authentication by API key, and admin-only routes. Without configured keys everybody is an admin."""

from __future__ import annotations

from collections.abc import Callable, Collection

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ggufd.api.http.json_response import error_response
from ggufd.api.http.paths import own_path
from ggufd.api.http.record import in_background, note_error, note_key
from ggufd.errors import Forbidden, Unauthorized
from ggufd.keys.ring import ANYBODY, Key, KeyRing

DOCS_FILES = "/docs/files"
"""Where the scripts of /docs lie."""

PROBE_PATHS = frozenset({"/health", "/health/live", "/health/ready", "/ready", "/v1/health"})
"""Paths of probes, which tell whether requests are taken and nothing else."""

PUBLIC_PATHS = PROBE_PATHS | {"/docs", "/openapi.json", "/favicon.ico"}
"""Paths that need no key: probes have none, and a browser cannot send one before the page is there."""

_SCOPE_KEY = "ggufd.key"


def key_of(request: Request) -> Key:
    """The key of this request; `ANYBODY` where none is asked for."""
    key: Key = request.scope.get(_SCOPE_KEY, ANYBODY)
    return key


def grant(scope: Scope, key: Key) -> None:
    """Let a request count as one that came with `key`: another proof came with it, which was checked."""
    scope[_SCOPE_KEY] = key


def as_background(scope: Scope, key: Key) -> Scope:
    """The scope of background work for the owner of a key, who need not send it again."""
    return {**in_background(scope), _SCOPE_KEY: key}


async def admin_only(request: Request) -> None:
    """A dependency of routes that show or change the server itself. Raises Forbidden."""
    require_admin(request)


def require_admin(request: Request) -> None:
    """Raises Forbidden unless an admin asks."""
    key = key_of(request)
    if not key.is_admin:
        raise Forbidden(
            f"{request.method} {request.url.path} needs an admin's key, and '{key.name}' is a {key.role.value}'s. "
            f"Whoever runs the server can make one: ggufd keys add NAME --admin."
        )


class KeyMiddleware:
    """Authentication middleware: a request needs a key of `ring`, as `Authorization: Bearer ...` or `x-api-key`.

    `public` are paths that need none, beside those that never do; nor does a request that `is_page` finds.
    """

    def __init__(
        self,
        app: ASGIApp,
        ring: KeyRing,
        public: Collection[str] = (),
        is_page: Callable[[Scope], bool] | None = None,
    ) -> None:
        self._app = app
        self._ring = ring
        self._public = public
        self._is_page = is_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._needs_no_key(scope):
            await self._app(scope, receive, send)
            return
        # Only the server itself can put one there: what comes over a socket is bytes.
        if (own := scope.get(_SCOPE_KEY)) is not None:
            note_key(scope, own.name)
            await self._app(scope, receive, send)
            return
        sent = _sent_keys(Headers(scope=scope))
        key = next((key for one in sent if (key := self._ring.find(one)) is not None), None)
        if key is None:
            note_error(scope, Unauthorized.code)
            await _refusal(bool(sent), scope)(scope, receive, send)
            return
        scope[_SCOPE_KEY] = key
        note_key(scope, key.name)
        await self._app(scope, receive, send)

    def _needs_no_key(self, scope: Scope) -> bool:
        path = own_path(scope)
        if is_public(path) or path in self._public or scope["method"] == "OPTIONS":
            return True
        return self._is_page is not None and self._is_page(scope)


def is_public(path: str) -> bool:
    """Whether a path is one that probes and browsers ask for."""
    return path in PUBLIC_PATHS or path.startswith(f"{DOCS_FILES}/")


def _sent_keys(headers: Headers) -> list[bytes]:
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    sent = [headers.get("x-api-key", "")]
    if scheme.lower() == "bearer":
        sent.append(bearer)
    return [key.strip().encode("latin-1", "replace") for key in sent if key.strip()]


def _refusal(has_key: bool, scope: Scope) -> ASGIApp:
    what = "The API key that was sent is wrong." if has_key else "No API key was sent."
    error = Unauthorized(f"{what} Send one of this server's, as 'Authorization: Bearer KEY'.")
    return error_response(error, scope)
