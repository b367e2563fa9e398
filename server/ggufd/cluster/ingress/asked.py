"""Requests as clients sent them: path, target, headers for a replica, and the body, read within a bound."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote

from multidict import CIMultiDict
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from ggufd.api.http.body_budget import BodyShare
from ggufd.api.http.error_shape import REQUEST_ID_HEADER
from ggufd.api.http.paths import own_path
from ggufd.api.pool.paths import use_of
from ggufd.cluster.relay.headers import to_replica
from ggufd.errors import PayloadTooLarge

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

_PREFIX = "/v1"


@dataclass(slots=True)
class AskedRequest:
    """One request of a client. `target` is what a replica is asked for, the query included."""

    method: str
    path: str
    target: str
    query: Mapping[str, str]
    headers: CIMultiDict[str]
    address: str
    scope: Scope = field(repr=False)
    body: bytes | AsyncIterator[bytes] = field(default=b"", repr=False)

    @classmethod
    def of(cls, scope: Scope, token: str | None) -> AskedRequest:
        """The request of an ASGI scope. A client that names no id for it is given one."""
        headers = to_replica(scope, token)
        if not _ID.fullmatch(headers.get(REQUEST_ID_HEADER, "")):
            headers[REQUEST_ID_HEADER] = uuid.uuid4().hex[:16]
        query = scope.get("query_string", b"").decode("latin-1")
        raw = (scope.get("raw_path") or b"").decode("latin-1").partition("?")[0] or quote(scope["path"])
        client = scope.get("client")
        return cls(
            method=scope["method"],
            path=own_path(scope),
            target=f"{raw}?{query}" if query else raw,
            query=_query(query),
            headers=headers,
            address=client[0] if client else "",
            scope=scope,
        )

    @property
    def route(self) -> str:
        """The path without the prefix /v1, which users leave out."""
        return self.path.removeprefix(_PREFIX) if self.path.startswith(f"{_PREFIX}/") else self.path

    @property
    def request_id(self) -> str:
        """The id of this request, whoever named it."""
        return self.headers[REQUEST_ID_HEADER]

    @property
    def sent(self) -> Headers:
        """The headers as the client sent them."""
        return Headers(scope=self.scope)

    @property
    def is_for_peers(self) -> bool:
        """Whether it asks for what only the cluster itself may ask of a replica."""
        return "peers" in self.path.split("/")

    @property
    def is_upload(self) -> bool:
        """Whether the body is a file, which is sent on as it comes and can be sent once only."""
        return self.method == "POST" and self.route == "/files"

    @property
    def is_repeatable(self) -> bool:
        """Whether it may be asked of another replica when nobody knows what became of it with the first."""
        return self.method in ("GET", "HEAD", "OPTIONS") or (self.method == "POST" and use_of(self.path) is not None)


def _query(text: str) -> Mapping[str, str]:
    return dict(parse_qsl(text, keep_blank_values=True))


async def read_body(receive: Receive, headers: Mapping[str, str], max_bytes: int, share: BodyShare) -> bytes:
    """The whole body. Raises PayloadTooLarge, Unavailable beside many, or ClientDisconnect."""
    declared = headers.get("content-length", "")
    if declared.isdecimal():
        _check(int(declared[:20]), max_bytes, share)
    body = bytearray()
    async for piece in pieces_of(receive):
        body += piece
        _check(len(body), max_bytes, share)
    return bytes(body)


def _check(n_bytes: int, max_bytes: int, share: BodyShare) -> None:
    if n_bytes > max_bytes:
        raise PayloadTooLarge(f"The request body is over the limit of {max_bytes} bytes. Send less.")
    share.cover(n_bytes)


async def pieces_of(receive: Receive) -> AsyncIterator[bytes]:
    """The pieces of a body as they come. Raises ClientDisconnect."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        if piece := message.get("body", b""):
            yield piece
        if not message.get("more_body", False):
            return
