"""In-process requests: a line goes through the whole application, as if its owner had sent it, and nobody waited."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message

from ggufd.api.http.auth import as_background
from ggufd.api.http.error_shape import REQUEST_ID_HEADER
from ggufd.keys.ring import Key


@dataclass(slots=True)
class LineResponse:
    """Response to a line, with the id that the log has of it."""

    status: int = 0
    request_id: str = ""
    body: bytearray = field(default_factory=bytearray)


async def dispatch(app: ASGIApp, path: str, body: bytes, key: Key, address: str) -> LineResponse:
    """The response of `app` to a POST of JSON. Cancelling it aborts the request, as a client does that leaves."""
    response, received = LineResponse(), False

    async def receive() -> Message:
        nonlocal received
        if not received:
            received = True
            return {"type": "http.request", "body": body, "more_body": False}
        # The client stays until it has its answer.
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            response.status = message["status"]
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in message["headers"]}
            response.request_id = headers.get(REQUEST_ID_HEADER, "")
        elif message["type"] == "http.response.body":
            response.body += message.get("body", b"")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "client": (address, 0) if address else None,
        "server": None,
        "state": {},
    }
    try:
        await app(as_background(scope, key), receive, send)
    except Exception:
        # Of a fault of ours the application writes the answer and the log, and raises it then.
        if not response.status:
            raise
    return response
