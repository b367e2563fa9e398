"""Headers between client and replica: what ends at each hop, what tells the replica who asks, what is told once."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from multidict import CIMultiDict
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ggufd.api.peers.gate import TOKEN_HEADER

CHAT_HEADER = "x-ggufd-chat"
"""The conversation that a request belongs to, as its router knows it: its replica keeps the name with the chat."""

_OWN_PREFIX = "x-ggufd-"
"""Of headers between the servers of a cluster, which no client may send."""

_HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)

_FORWARDED = frozenset(
    (
        "forwarded",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
        "x-real-ip",
    )
)
"""What any client could claim: the replica is told what is seen here."""

_NOT_SENT_ON = _HOP_BY_HOP | _FORWARDED | {"content-length", "expect"}

_TOLD_HERE = _HOP_BY_HOP | {"date", "server"}
"""What the server in front of this application writes."""


def to_replica(scope: Scope, token: str | None) -> CIMultiDict[str]:
    """The headers that a replica is sent in place of the client's."""
    sent = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    dropped = _NOT_SENT_ON | _named_by_connection(value for name, value in sent if name.lower() == "connection")
    headers: CIMultiDict[str] = CIMultiDict(
        (name, value) for name, value in sent if not (name.lower() in dropped or name.lower().startswith(_OWN_PREFIX))
    )
    client = scope.get("client")
    if client is not None:
        headers["x-forwarded-for"] = client[0]
    headers["x-forwarded-proto"] = scope.get("scheme", "http")
    if token is not None:
        headers[TOKEN_HEADER] = token
    return headers


def to_client(raw: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of a replica's answer that its client is told."""
    lower = [(name.lower(), value) for name, value in raw]
    dropped = _TOLD_HERE | _named_by_connection(
        value.decode("latin-1") for name, value in lower if name == b"connection"
    )
    return [(name, value) for name, value in lower if name.decode("latin-1") not in dropped]


def without_headers(app: ASGIApp, names: Collection[str]) -> ASGIApp:
    """The application without these headers in its answers."""
    dropped = {name.lower().encode("latin-1") for name in names}

    async def lean(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_lean(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [one for one in message.get("headers", ()) if one[0].lower() not in dropped]
                message = {**message, "headers": kept}
            await send(message)

        await app(scope, receive, send_lean)

    return lean


def _named_by_connection(values: Iterable[str]) -> set[str]:
    """Headers that a Connection header says end at this hop."""
    return {name.strip().lower() for value in values for name in value.split(",")}
