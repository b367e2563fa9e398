"""Forwarding of a request to a replica, and to others as long as nothing real was sent of an answer.

A replica that is lost is one to avoid, and the next one is asked. One that is full is, too, but only one other is asked
then: a full cluster must not be asked by each request as often as it has replicas. What goes through after the first
real bytes is not looked at.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import aiohttp
from starlette.types import Send

from ggufd.cluster.ingress.asked import AskedRequest
from ggufd.cluster.relay.delivery import Delivery, separator_of
from ggufd.cluster.relay.failures import LINES, broken, failure, none_left
from ggufd.cluster.relay.headers import to_client
from ggufd.cluster.relay.opening import EventOpening, LineOpening, StreamOpening, whole_events
from ggufd.cluster.relay.upstream import Exchange, OpenExchanges, ReplicaLost, Upstream, losing, retry_after
from ggufd.cluster.replicas import Replica, Replicas
from ggufd.cluster.routing.hints import RouteHint
from ggufd.errors import NotAPeer

logger = logging.getLogger(__name__)

_MOST_ASKED = 5
"""Replicas that one request may be lost with or refused by, if it is the request that ends them."""

_MOST_FULL = 2

PATIENCE_S = 5.0
_AGAIN_S = 0.25

_HELD_BYTES = 1 << 20
"""Answers up to here that are no streams are sent when they are whole, so that a lost one is asked for again."""

_NAMING = frozenset(("/responses", "/files", "/batches"))
"""Routes whose answers name something that only their replica has."""

_OK, _FULL, _UNKNOWN = 200, 503, 401

_BAD_TOKEN = f'"{NotAPeer.code}"'.encode()


Learn = Callable[[str, bytes], None]
"""Takes the first real bytes of an answer, which name what its replica has from now on."""


class ReplicaRouter(Protocol):
    """Choice of a replica, and how many requests each has from here."""

    def best(self, hint: RouteHint | None, replicas: Sequence[Replica], avoid: Collection[str]) -> Replica | None: ...

    def opened(self, replica_id: str) -> None: ...

    def closed(self, replica_id: str, generation_s: float | None) -> None: ...


class ReplicaRefusal(Exception):
    """A replica's word that it takes no requests now, and when it may.

    `separator` is that of a stream that begins with it.
    """

    def __init__(self, answer: aiohttp.ClientResponse, body: bytes, separator: bytes = b"") -> None:
        super().__init__(answer.status)
        self.status = answer.status
        self.headers = to_client(answer.raw_headers)
        self.body = body
        self.separator = separator
        self.retry_s = retry_after(answer.headers)


class Forwarder:
    """Forwarding of requests to the replicas that there are."""

    def __init__(
        self,
        replicas: Replicas,
        router: ReplicaRouter,
        upstream: Upstream,
        exchanges: OpenExchanges,
        learn: Learn = lambda replica_id, data: None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._replicas = replicas
        self._router = router
        self._upstream = upstream
        self._exchanges = exchanges
        self._learn = learn
        self._patience_s = patience_s

    async def forward(
        self, asked: AskedRequest, hint: RouteHint | None, send: Send, only: Replica | None = None
    ) -> str | None:
        """Answer a request; the id of the replica that did. `only` is the one replica that can."""
        delivery = Delivery(send, asked.route)
        names_things = asked.method == "POST" and asked.route in _NAMING
        avoid: set[str] = set()
        refusals: list[ReplicaRefusal] = []
        while len(avoid) < _MOST_ASKED and len(refusals) < _MOST_FULL:
            replica = await self._next(hint, avoid, only, waits=not refusals)
            if replica is None:
                break
            avoid.add(replica.id)
            try:
                await self._attempt(replica, asked, delivery, is_generation=hint is not None)
            except ReplicaRefusal as refusal:
                refusals.append(refusal)
            except ReplicaLost as lost:
                logger.warning("a replica was lost: %s", lost)
                if delivery.has_begun:
                    await delivery.break_off(broken())
                    return replica.id
                if lost.was_sent and not asked.is_repeatable:
                    break
            else:
                if names_things:
                    self._learn(replica.id, delivery.first)
                return replica.id
        await self._refuse(asked, delivery, refusals, len(avoid))
        return None

    async def _next(
        self, hint: RouteHint | None, avoid: set[str], only: Replica | None, *, waits: bool
    ) -> Replica | None:
        """The next replica to ask. Where none is left it is waited for: the list may be older than those who are there.

        The directory may have been started again, and so may the replicas that were lost with this request.
        """
        if only is not None:
            return None if only.id in avoid else only
        for n_left in reversed(range(1 + round(self._patience_s / _AGAIN_S))):
            found = self._router.best(hint, await self._replicas.all(), avoid)
            if found is not None or not waits or not n_left:
                return found
            await asyncio.sleep(_AGAIN_S)
        return None

    async def _attempt(self, replica: Replica, asked: AskedRequest, delivery: Delivery, *, is_generation: bool) -> None:
        """Raises ReplicaLost or ReplicaRefusal."""
        self._router.opened(replica.id)
        begun_s = time.monotonic()
        try:
            await self._exchange(replica, asked, delivery)
        finally:
            has_generated = is_generation and delivery.has_begun and delivery.status == _OK
            self._router.closed(replica.id, time.monotonic() - begun_s if has_generated else None)

    async def _exchange(self, replica: Replica, asked: AskedRequest, delivery: Delivery) -> None:
        """Raises ReplicaLost or ReplicaRefusal."""
        async with (
            self._exchanges.during(replica) as exchange,
            self._upstream.asked(replica, asked.method, asked.target, asked.headers, asked.body) as answer,
        ):
            exchange.hear()
            if answer.status == _FULL:
                raise await _refusal(replica, answer)
            if answer.status == _UNKNOWN:
                await _check_token(replica, answer)
            await _relay(exchange, answer, delivery)

    @staticmethod
    async def _refuse(asked: AskedRequest, delivery: Delivery, refusals: list[ReplicaRefusal], n_asked: int) -> None:
        if refusals:
            soonest = min(refusals, key=lambda refusal: refusal.retry_s)
            await delivery.refuse(soonest.status, soonest.headers, soonest.body, soonest.separator)
            return
        response = failure(none_left(n_asked), asked.scope, asked.request_id)
        await delivery.refuse(response.status_code, response.raw_headers, bytes(response.body))


async def _refusal(replica: Replica, answer: aiohttp.ClientResponse) -> ReplicaRefusal:
    with losing(replica):
        return ReplicaRefusal(answer, await answer.read())


async def _check_token(replica: Replica, answer: aiohttp.ClientResponse) -> None:
    """Raises ReplicaLost where it is not the client whose key is unknown, but the cluster whose token is."""
    with losing(replica):
        # Kept by the answer, which tells it once more.
        body = await answer.read()
    if _BAD_TOKEN in body:
        raise ReplicaLost(replica, "does not take the cluster's token", was_sent=False)


async def _relay(exchange: Exchange, answer: aiohttp.ClientResponse, delivery: Delivery) -> None:
    """Send an answer on. Raises ReplicaLost, or ReplicaRefusal where a stream begins with one."""
    separator = separator_of(answer.headers.get("Content-Type", ""))
    if delivery.has_head and separator != delivery.separator:
        with losing(exchange.replica):
            body = await answer.read()
        await delivery.refuse(answer.status, (), body)
    elif separator:
        await _relay_stream(exchange, answer, delivery, separator)
    else:
        await _relay_body(exchange, answer, delivery)


async def _relay_body(exchange: Exchange, answer: aiohttp.ClientResponse, delivery: Delivery) -> None:
    headers = to_client(answer.raw_headers)
    if answer.content_length is not None and answer.content_length <= _HELD_BYTES:
        with losing(exchange.replica):
            body = await answer.read()
        await delivery.head(answer.status, headers, b"")
        await delivery.end(body)
        return
    with losing(exchange.replica):
        piece = await answer.content.readany()
    await delivery.head(answer.status, headers, b"")
    while piece:
        await delivery.real(piece)
        with losing(exchange.replica):
            piece = await answer.content.readany()
    await delivery.end()


async def _relay_stream(
    exchange: Exchange, answer: aiohttp.ClientResponse, delivery: Delivery, separator: bytes
) -> None:
    held = await _open_stream(exchange, answer, delivery, separator)
    while True:
        with losing(exchange.replica):
            data = await answer.content.readany()
        if not data:
            break
        exchange.hear()
        whole, held = whole_events(separator, held, data)
        if whole:
            await delivery.real(whole)
    await delivery.end(held)


async def _open_stream(
    exchange: Exchange, answer: aiohttp.ClientResponse, delivery: Delivery, separator: bytes
) -> bytes:
    """Send the opening of a stream up to its first real events; what is held of the next one."""
    opening: StreamOpening = LineOpening() if separator == LINES else EventOpening()
    headers = to_client(answer.raw_headers)
    while True:
        with losing(exchange.replica):
            data = await answer.content.readany()
        if not data:
            await delivery.head(answer.status, headers, separator)
            return opening.rest()
        exchange.hear()
        opened = opening.feed(data)
        if opened.is_refused:
            raise ReplicaRefusal(answer, opened.real, separator)
        if opened.comments or opened.real:
            await delivery.head(answer.status, headers, separator)
        if opened.comments:
            await delivery.comment(opened.comments)
        if opened.real:
            whole, held = whole_events(separator, b"", opened.real)
            await delivery.real(whole)
            return held
