"""Request records: id, caller, usage and timings of an HTTP request, for the log, the metrics and the traces.

Each request has an id: the client's own `x-request-id` where it sends one, and it goes back with the answer.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ggufd.api.http import ignored
from ggufd.api.http.error_shape import REQUEST_ID_HEADER, ErrorShape, note_shape
from ggufd.api.http.paths import own_path

DISCONNECTED = "disconnect"
"""The reason of a request whose client left before its end."""

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SCOPE_RECORD = "ggufd.record"
_SCOPE_BACKGROUND = "ggufd.background"


@dataclass(slots=True, eq=False)
class RequestRecord:
    """Record of one request. Seconds: `started_s` of `time.monotonic`, the others durations; None where unknown.

    `is_background` says that nobody waits for the answer, `is_work` that the model had something to compute; `reason`
    is why it ended: a finish reason, an error's code, `DISCONNECTED`, or "" of what was no work.
    `first_s` is the TTFT, from arrival to the first token; `decode_s` is the time of the tokens after it, of the
    slowest choice, and `decoded_tokens` are those of all. `cache_class` is what the cache had for the first prompt.
    `waited_s` is how long it waited until its model was loaded. `chat` is the conversation by the word of the cluster.
    `ignored` names fields that were asked for in vain, which the answer tells. `body` is what was sent and `seed` what
    was drawn for it, where the answer has to tell.
    """

    request_id: str = ""
    method: str = ""
    path: str = ""
    address: str = ""
    started_s: float = field(default_factory=time.monotonic)
    took_s: float = 0.0
    status: int = 0
    traceparent: str = ""
    chat: str = ""
    key: str = ""
    model: str = ""
    reason: str = ""
    is_background: bool = False
    is_work: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    waited_s: float = 0.0
    queue_s: float | None = None
    prefill_s: float | None = None
    first_s: float | None = None
    decode_s: float = 0.0
    decoded_tokens: int = 0
    cache_class: str = ""
    ignored: list[str] = field(default_factory=list)
    body: bytes = field(default=b"", repr=False)
    seed: int | None = None
    _is_held: bool = field(default=False, init=False, repr=False)
    _on_end: Sink | None = field(default=None, init=False, repr=False)

    @property
    def tokens_per_s(self) -> float | None:
        """Decode throughput of all choices together; None where they are too short to tell."""
        return self.decoded_tokens / self.decode_s if self.decoded_tokens and self.decode_s > 0 else None

    def hold(self) -> None:
        """Keep the record open beyond the response: the work goes on without the client."""
        self._is_held = True

    def release(self) -> None:
        """The work has ended."""
        self._is_held = False
        if self._on_end is not None:
            self._end(self._on_end)

    def close(self, on_end: Sink) -> None:
        """The response has ended; `on_end` is told as soon as the work has, too."""
        if self._is_held:
            self._on_end = on_end
        else:
            self._end(on_end)

    def _end(self, on_end: Sink) -> None:
        self.took_s = time.monotonic() - self.started_s
        on_end(self)

    def note_first_token(self) -> None:
        """Note the TTFT: the first token of any choice is there."""
        if self.first_s is None:
            self.first_s = time.monotonic() - self.started_s


Sink = Callable[[RequestRecord], None]
"""Takes what has ended. Must be quick and raise nothing."""


def in_background(scope: Scope) -> Scope:
    """The scope of a request that the server sends to itself, and for whose answer nobody waits."""
    return {**scope, _SCOPE_BACKGROUND: True}


def record_of(request: Request) -> RequestRecord:
    """The record of this request; an unused one where the middleware is missing."""
    record: RequestRecord = request.scope.get(_SCOPE_RECORD) or RequestRecord()
    return record


def note_error(scope: Scope, code: str) -> None:
    """An error ended this request."""
    record = scope.get(_SCOPE_RECORD)
    if record is not None:
        record.reason = code


def note_key(scope: Scope, name: str) -> None:
    """Note whose key came with this request."""
    record = scope.get(_SCOPE_RECORD)
    if record is not None:
        record.key = name


def note_address(scope: Scope, address: str) -> None:
    """Note the address of who asked, where a proxy that is believed told it."""
    record = scope.get(_SCOPE_RECORD)
    if record is not None:
        record.address = address


def note_chat(scope: Scope, chat: str) -> None:
    """Note the conversation that this request belongs to, by the word of the cluster."""
    record = scope.get(_SCOPE_RECORD)
    if record is not None:
        record.chat = chat


def is_own(scope: Scope) -> bool:
    """Whether the server itself sent this request, as it does for lines of batches."""
    return _SCOPE_BACKGROUND in scope


class RecordMiddleware:
    """Middleware that gives every request a record, an id and an error format; `sinks` get the record at its end."""

    def __init__(self, app: ASGIApp, sinks: Sequence[Sink], shapes: Sequence[ErrorShape] = ()) -> None:
        self._app = app
        self._shapes = shapes
        self._sinks = sinks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = _begin(scope)
        scope[_SCOPE_RECORD] = record
        shape = note_shape(scope, self._shapes)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                told = _told(record, shape)
                message = {**message, "headers": [*message.get("headers", ()), *told]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            # The answer to this is written by who stands outside of all middleware.
            record.status, record.reason = 500, "internal_error"
            raise
        finally:
            record.close(self._tell)

    def _tell(self, record: RequestRecord) -> None:
        for sink in self._sinks:
            sink(record)


def _told(record: RequestRecord, shape: ErrorShape) -> list[tuple[bytes, bytes]]:
    """The response headers that come from here: the request's id, and which of its fields were ignored."""
    headers = [(name, record.request_id) for name in shape.id_headers]
    if record.ignored:
        headers.append((ignored.HEADER, ignored.header_of(record.ignored)))
    return [(name.encode(), value.encode()) for name, value in headers]


def _begin(scope: Scope) -> RequestRecord:
    headers = Headers(scope=scope)
    sent = headers.get(REQUEST_ID_HEADER, "")
    client = scope.get("client")
    return RequestRecord(
        request_id=sent if _ID.fullmatch(sent) else uuid.uuid4().hex[:16],
        method=scope["method"],
        path=own_path(scope),
        address=client[0] if client else "",
        traceparent=headers.get("traceparent", ""),
        is_background=is_own(scope),
    )
