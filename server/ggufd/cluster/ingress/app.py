"""Application of the ingress: which requests go to one replica, which to the one that knows an id, which to all.

Pure ASGI without a framework: it runs in any server, and a token costs one read and one write. Knows no Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from ggufd.api.http.body_budget import MAX_BYTES, BodyBudget, BodyShare
from ggufd.api.http.paths import PathMiddleware
from ggufd.api.http.requestlog import log_crash
from ggufd.cluster.ingress.asked import AskedRequest, pieces_of, read_body
from ggufd.cluster.ingress.everyone import Everyone
from ggufd.cluster.ingress.fan_out import FanOut
from ggufd.cluster.ingress.forwarding import PATIENCE_S, Forwarder, ReplicaRouter
from ggufd.cluster.ingress.places import Places
from ggufd.cluster.relay.failures import failure
from ggufd.cluster.relay.headers import CHAT_HEADER, without_headers
from ggufd.cluster.relay.upstream import OpenExchanges, Upstream
from ggufd.cluster.replicas import Replicas
from ggufd.cluster.routing.hints import RouteHint, hint_of
from ggufd.errors import GgufdError, NotFound

logger = logging.getLogger(__name__)

_WATCH_S = 1.0

HintOf = Callable[[str, str, Mapping[str, str], bytes, str], RouteHint | None]
"""The hint of a request by its method, path, headers, body and address."""


class Ingress:
    """ASGI application that answers every request of one server with one of several.

    `token` is what the replicas know the cluster by. A body may have `max_body_bytes`, and those of all open requests
    `max_bodies_bytes` together. `root_path` is the prefix that a proxy shows the cluster under, `trusted_proxies` are
    the addresses and networks whose word on the client's address is taken. A request waits `patience_s` for replicas to
    be listed where none is. `told_by_server` are headers that the server around this application adds to each answer.
    """

    def __init__(
        self,
        replicas: Replicas,
        router: ReplicaRouter,
        token: str | None,
        *,
        hint_of: HintOf = hint_of,
        max_body_bytes: int = 32_000_000,
        max_bodies_bytes: int = MAX_BYTES,
        root_path: str = "",
        trusted_proxies: Sequence[str] = (),
        patience_s: float = PATIENCE_S,
        told_by_server: Collection[str] = (),
    ) -> None:
        self._replicas = replicas
        self._token = token
        self._hint_of = hint_of
        self._max_body_bytes = max_body_bytes
        self._budget = BodyBudget(max_bodies_bytes)
        self._upstream = Upstream()
        self._exchanges = OpenExchanges()
        everyone = Everyone(replicas, self._upstream)
        self._fan_out = FanOut(everyone)
        self._places = Places(everyone)
        self._forwarder = Forwarder(replicas, router, self._upstream, self._exchanges, self._places.learn, patience_s)
        self._watching: asyncio.Task[None] | None = None
        app: ASGIApp = PathMiddleware(self._respond, root_path)
        if told_by_server:
            app = without_headers(app, told_by_server)
        # Outermost, and by the server's own code: what it says of the client goes on to the replicas.
        self._app: Any = ProxyHeadersMiddleware(app, list(trusted_proxies)) if trusted_proxies else app  # type: ignore[arg-type]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._app(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)

    async def close(self) -> None:
        """End all connections to the replicas."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
            self._watching = None
        await self._upstream.close()

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; what goes wrong before anything was sent is told in the shape of its API."""
        self._watch()
        asked = AskedRequest.of(scope, self._token)
        share = BodyShare(self._budget)
        is_begun = False

        async def send_noted(message: Message) -> None:
            nonlocal is_begun
            is_begun = True
            await send(message)

        try:
            await self._answer(asked, receive, send_noted, share)
        except GgufdError as error:
            await failure(error, scope, asked.request_id)(scope, receive, send)
        except ClientDisconnect:
            return
        except Exception as error:
            log_crash(logger, f"{asked.method} {asked.path[:60]!a} failed in the ingress", error)
            if not is_begun:
                failed = GgufdError("The cluster failed on this request. The log of its ingress says why.")
                await failure(failed, scope, asked.request_id)(scope, receive, send)
        finally:
            share.give_back()

    async def _answer(self, asked: AskedRequest, receive: Receive, send: Send, share: BodyShare) -> None:
        if asked.is_for_peers:
            raise NotFound(f"There is no route {asked.method} {asked.path[:100]}. See /docs.")
        if asked.is_upload:
            asked.body = pieces_of(receive)
            await self._forwarder.forward(asked, None, send)
            return
        body = asked.body = await read_body(receive, asked.sent, self._max_body_bytes, share)
        await _until_left(receive, self._chosen(asked, body, send))

    async def _chosen(self, asked: AskedRequest, body: bytes, send: Send) -> None:
        only = await self._places.find(asked)
        if only is None and (answer := self._fan_out.find(asked)) is not None:
            await (await answer(asked))(asked.scope, _never, send)
            return
        hint = self._hint_of(asked.method, asked.path, asked.headers, body, asked.address)
        if hint is not None and only is None:
            asked.headers[CHAT_HEADER] = hint.chat.hex()
        await self._forwarder.forward(asked, hint, send, only)

    # --- replicas that are gone -------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Begin to look for replicas that are gone, while anything is under way."""
        if self._watching is None or self._watching.done():
            self._watching = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        await asyncio.sleep(_WATCH_S)
        while len(self._exchanges):
            try:
                self._exchanges.end_all_but({replica.id for replica in await self._replicas.all()})
            except Exception:
                logger.exception("the replicas could not be told")
            await asyncio.sleep(_WATCH_S)


async def _until_left(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work unless the client leaves first, which ends it at once."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _never() -> Message:
    """`receive` of a response whose client is watched by others."""
    never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    return await never


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
