"""Gate in front of the routes that need the model: a request that names another one waits here until it is loaded.

The body is read here and handed on, so that handlers know nothing of it: when one is called, the model that its request
names is loaded, and stays until the response has ended. Without several models there is no gate.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ggufd.api.http.body import parse_json
from ggufd.api.http.json_response import error_response
from ggufd.api.http.record import DISCONNECTED, note_error, record_of
from ggufd.api.pool.paths import ModelUse, use_of
from ggufd.api.pool.relay import WaitRelay
from ggufd.api.pool.rights import may_swap
from ggufd.api.services.services import Services, caller_of, serve_by, services_of
from ggufd.errors import Draining, GgufdError, InvalidRequest
from ggufd.model_pool.pool import Claim, ModelPool, ModelTurn

_TELL_S = 1.0
_CLIENT_CLOSED = 499


@dataclass(frozen=True, slots=True)
class ModelWish:
    """What a body says that matters here. What is wrong in it is for its route to refuse."""

    model: str | None = None
    timeout_s: float | None = None
    streams: bool = False
    tells_queue: bool = False

    @classmethod
    def of(cls, body: bytes) -> Self:
        """The wish in a body; none where it cannot be read."""
        try:
            return cls._of(parse_json(body))
        except InvalidRequest:
            return cls()

    @classmethod
    def _of(cls, fields: Mapping[str, Any]) -> Self:
        model, timeout = fields.get("model"), fields.get("timeout")
        is_time = isinstance(timeout, (int, float)) and not isinstance(timeout, bool) and timeout > 0
        return cls(
            model if isinstance(model, str) else None,
            float(timeout) if is_time and timeout is not None else None,
            fields.get("stream") is True,
            fields.get("report_queue") is True,
        )


@dataclass(slots=True)
class _Body:
    """Messages of a request's body that were read, and are handed on. `is_whole` is False where it is too long, or its
    client left.
    """

    receive: Receive
    messages: list[Message] = field(default_factory=list)
    is_whole: bool = False

    async def read(self, max_bytes: int) -> None:
        """Read it, unless it is longer than that."""
        n_bytes = 0
        while not self.is_whole and n_bytes <= max_bytes:
            message = await self.receive()
            self.messages.append(message)
            if message["type"] != "http.request":
                return
            n_bytes += len(message.get("body", b""))
            self.is_whole = not message.get("more_body", False)

    @property
    def data(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    async def replay(self) -> Message:
        """As the original `receive`, from the beginning."""
        return self.messages.pop(0) if self.messages else await self.receive()


class ModelGate:
    """Middleware that lets a request through when its model is loaded. Requests that need no model pass."""

    def __init__(self, app: ASGIApp, pool: ModelPool) -> None:
        self._app = app
        self._pool = pool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        use = None
        if scope["type"] == "http" and scope["method"] == "POST":
            use = use_of(scope["path"].removeprefix(scope.get("root_path", "")))
        if use is None:
            await self._app(scope, receive, send)
            return
        request, body = Request(scope, receive), _Body(receive)
        await body.read(services_of(request).config.max_body_bytes)
        if not body.is_whole:
            await self._app(scope, body.replay, send)
            return
        await self._serve(request, use, body, send)

    async def _serve(self, request: Request, use: ModelUse, body: _Body, send: Send) -> None:
        wish = ModelWish.of(body.data)
        relay = WaitRelay(send, request.scope, can_begin=use is ModelUse.STREAMS and wish.streams, wish=wish)
        try:
            turn = self._enter(request, use, wish)
            with turn:
                if not await self._is_ready(request, turn, body, relay):
                    await self._leave(request, body, send)
                    return
                record_of(request).waited_s = turn.waited_s
                if turn.model in self._pool.kept:
                    serve_by(request.scope, services_of(request).beside[turn.model])
                await self._app(request.scope, body.replay, relay.send)
        except _Refused as refused:
            note_error(request.scope, refused.error.code)
            await error_response(refused.error, request.scope)(request.scope, body.replay, relay.send)

    def _enter(self, request: Request, use: ModelUse, wish: ModelWish) -> ModelTurn:
        """The turn of a request. Raises _Refused."""
        services = services_of(request)
        known = self._pool.catalogue.find(wish.model)
        claim = Claim(
            caller_of(request).principal,
            may_swap=known is not None and may_swap(request, services.config, known),
            is_light=use is ModelUse.COUNTS,
            timeout_s=wish.timeout_s,
        )
        with _refusing():
            if known is not None and self._pool.would_swap(known.name):
                _check_open(services)
            return self._pool.enter(wish.model, claim)

    async def _is_ready(self, request: Request, turn: ModelTurn, body: _Body, relay: WaitRelay) -> bool:
        """Wait for the model; False when the client left. Raises _Refused."""
        if turn.is_ready:
            return True
        leaving = asyncio.ensure_future(_left(body.receive))
        revocations = services_of(request).revocations
        try:
            with revocations.during(caller_of(request), turn.refuse), _refusing():
                while not await self._is_over(turn):
                    if leaving.done():
                        return False
                    await relay.tell(turn)
                    await asyncio.wait({leaving, turn.future}, timeout=_TELL_S, return_when=asyncio.FIRST_COMPLETED)
                return True
        finally:
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)

    async def _is_over(self, turn: ModelTurn) -> bool:
        """Whether the waiting has ended. Raises what refused it, also that it took too long."""
        most_s = turn.claim.timeout_s
        bound_s = self._pool.rules.max_wait_s if most_s is None else min(most_s, self._pool.rules.max_wait_s)
        if not turn.is_over and not turn.ticket.is_background and turn.waited_s >= bound_s:
            self._pool.expire(turn)
        return turn.is_over and await turn.wait(0)

    @staticmethod
    async def _leave(request: Request, body: _Body, send: Send) -> None:
        record_of(request).reason = DISCONNECTED
        await Response(status_code=_CLIENT_CLOSED)(request.scope, body.replay, send)


def _check_open(services: Services) -> None:
    """Raises Draining where an admin told the server to take no requests, EngineDown before the first model is loaded:
    no request has another one loaded then.
    """
    if services.engine.state.name == "DRAINING":
        raise Draining("the server was told to drain and takes no new requests for now; try again later")
    services.require_ready()


class _Refused(Exception):
    """Refusal by the gate itself: errors of what lies behind it are not its own."""

    def __init__(self, error: GgufdError) -> None:
        super().__init__(error.message)
        self.error = error


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Context whose errors are refusals by the gate."""
    try:
        yield
    except GgufdError as error:
        raise _Refused(error) from None


async def _left(receive: Receive) -> None:
    """Return when the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
