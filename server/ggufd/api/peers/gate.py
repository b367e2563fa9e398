"""Gate of a server in a cluster: only who has the cluster's token is answered, and is believed who it asks for."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ggufd.api.http.auth import PROBE_PATHS, grant
from ggufd.api.http.json_response import error_response
from ggufd.api.http.paths import own_path
from ggufd.api.http.record import is_own, note_address, note_chat, note_error
from ggufd.errors import NotAPeer
from ggufd.keys.ring import Key, Role

TOKEN_HEADER = "x-ggufd-peer"

CHAT_HEADER = "x-ggufd-chat"
"""The conversation by which the cluster routed a request: 32 hex digits, kept with what is computed for it."""

PREFIX = "/peers/"
"""Of the paths that are for the cluster itself: their only key is its token."""

_CHAT = re.compile("[0-9a-f]{32}")
_NOT_PASSED_ON = (TOKEN_HEADER.encode(), CHAT_HEADER.encode())
_CLUSTER = Key("cluster", b"", Role.ADMIN)


class PeerMiddleware:
    """Middleware that refuses every request without the cluster's `token`, but those of health probes.

    A peer says in `x-forwarded-for` and `x-forwarded-proto` for whom it asks; one that says nothing asks for itself. Of
    several addresses the last is taken: those before it may be a client's own words.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._digest = _digest(token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_own(scope) or own_path(scope) in PROBE_PATHS:
            await self._app(scope, receive, send)
            return
        if not self._is_peer(Headers(scope=scope)):
            error = NotAPeer(
                "This server belongs to a cluster and answers nobody else. Send the request to the cluster's address."
            )
            note_error(scope, error.code)
            await error_response(error, scope)(scope, receive, send)
            return
        await self._app(_as_told(scope), receive, send)

    def _is_peer(self, headers: Headers) -> bool:
        # Of digests, which have one length: a comparison would otherwise tell that of the token.
        return hmac.compare_digest(_digest(headers.get(TOKEN_HEADER, "")), self._digest)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.strip().encode("latin-1", "replace")).digest()


def _as_told(scope: Scope) -> Scope:
    """The scope of the request as the peer received it, without the token."""
    headers = Headers(scope=scope)
    address = _address(headers.get("x-forwarded-for", ""))
    if address is not None:
        scope["client"] = (address, 0)
        note_address(scope, address)
    if (scheme := headers.get("x-forwarded-proto", "").strip().lower()) in ("http", "https"):
        scope["scheme"] = scheme
    if _CHAT.fullmatch(chat := headers.get(CHAT_HEADER, "")):
        note_chat(scope, chat)
    if own_path(scope).startswith(PREFIX):
        grant(scope, _CLUSTER)
    scope["headers"] = [(name, value) for name, value in scope["headers"] if name.lower() not in _NOT_PASSED_ON]
    return scope


def _address(forwarded: str) -> str | None:
    """The address of the client; None where there is none, or none that is one."""
    last = forwarded.rpartition(",")[2].strip()
    try:
        ipaddress.ip_address(last.partition("%")[0])
    except ValueError:
        return None
    return last
