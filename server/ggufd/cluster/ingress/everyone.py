"""Questions to all replicas at once, and orders to all of them. What one that is gone would say is left out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from starlette.responses import Response

from ggufd.cluster.ingress.asked import AskedRequest
from ggufd.cluster.relay.headers import to_client
from ggufd.cluster.relay.upstream import ReplicaLost, Upstream, losing
from ggufd.cluster.replicas import Replica, Replicas

logger = logging.getLogger(__name__)

_PATIENCE_S = 8.0
"""A replica that is busy with one long step takes up to five seconds to tell its metrics; Prometheus waits ten."""


@dataclass(frozen=True, slots=True)
class Told:
    """What one replica answered."""

    replica: Replica
    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes

    @property
    def is_well(self) -> bool:
        """Whether it did what was asked."""
        return 200 <= self.status < 300

    @property
    def json(self) -> Any:
        """Its body. Raises ValueError."""
        return json.loads(self.body)

    def as_response(self) -> Response:
        """The same answer to the client."""
        response = Response(self.body, self.status)
        response.raw_headers = list(self.headers)
        return response


class Everyone:
    """All replicas, asked the same."""

    def __init__(self, replicas: Replicas, upstream: Upstream) -> None:
        self._replicas = replicas
        self._upstream = upstream

    async def ask(self, asked: AskedRequest, *, patience_s: float | None = _PATIENCE_S, **changes: Any) -> list[Told]:
        """The answers of those that gave one in time; `changes` as in `ask_one`."""
        replicas = await self._replicas.all()
        asking = (self.ask_one(replica, asked, patience_s=patience_s, **changes) for replica in replicas)
        return [told for told in await asyncio.gather(*asking) if told is not None]

    async def ask_one(
        self,
        replica: Replica,
        asked: AskedRequest,
        *,
        patience_s: float | None = _PATIENCE_S,
        method: str | None = None,
        target: str | None = None,
        body: bytes | None = None,
    ) -> Told | None:
        """The answer of one replica; None where it gave none. It is asked as the client did but for what is named."""
        # What is put together needs the bodies, also where the client wants the head alone.
        method = method or ("GET" if asked.method == "HEAD" else asked.method)
        target = target or asked.target
        sent = (asked.body if body is None else body) if method not in ("GET", "HEAD") else b""
        try:
            async with (
                asyncio.timeout(patience_s),
                self._upstream.asked(
                    replica, method or asked.method, target or asked.target, asked.headers, sent
                ) as answer,
            ):
                with losing(replica):
                    return Told(replica, answer.status, to_client(answer.raw_headers), await answer.read())
        except (ReplicaLost, TimeoutError) as error:
            logger.warning("a replica did not answer: %s", error or replica.id)
            return None

    def open(
        self, replica: Replica, asked: AskedRequest
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Context of an answer that does not end by itself. Raises ReplicaLost."""
        return self._upstream.asked(replica, asked.method, asked.target, asked.headers)

    async def all(self) -> Sequence[Replica]:
        """The replicas that there are."""
        return await self._replicas.all()


def bodies_of(told: Iterable[Told]) -> Mapping[str, Any]:
    """Bodies by replica of those that did what was asked."""
    return {one.replica.id: one.json for one in told if one.is_well}
