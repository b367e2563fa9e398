"""Exchanges under way, so that what waits for a replica that is gone does not wait for ever.

A process that hangs keeps its connections. But it is missing among the replicas some seconds later, and where it has
said nothing for as long its requests are taken for lost.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection

from ggufd.cluster.ingress.upstream import ReplicaLost
from ggufd.cluster.replicas import Replica

SILENT_S = 5.0
"""Streams carry a comment each second, so one that has said nothing for so long is not at work. An answer that is no
stream says nothing before its end: where its replica is gone it is lost as well."""


class OpenExchanges:
    """Exchanges that are under way, each with its time limit: none, until its replica is gone."""

    def __init__(self, silent_s: float = SILENT_S) -> None:
        self._silent_s = silent_s
        self._open: dict[Exchange, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    @contextlib.asynccontextmanager
    async def during(self, replica: Replica) -> AsyncIterator[Exchange]:
        """Context of an exchange. Raises ReplicaLost where its replica went meanwhile."""
        exchange = Exchange(replica)
        self._open[exchange] = None
        try:
            async with exchange.limit:
                yield exchange
        except TimeoutError:
            raise ReplicaLost(replica, "is not among the replicas any more", was_sent=True) from None
        finally:
            del self._open[exchange]

    def end_all_but(self, present: Collection[str]) -> None:
        """End what waits for replicas that are gone and have said nothing for a while."""
        now_s = asyncio.get_running_loop().time()
        for exchange in self._open:
            if exchange.replica.id not in present and now_s - exchange.heard_s >= self._silent_s:
                exchange.limit.reschedule(now_s)


class Exchange:
    """One request to one replica. `heard_s` is when it last said something."""

    __slots__ = ("_now", "heard_s", "limit", "replica")

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.limit = asyncio.timeout(None)
        self._now = asyncio.get_running_loop().time
        self.heard_s = self._now()

    def hear(self) -> None:
        """The replica said something."""
        self.heard_s = self._now()
