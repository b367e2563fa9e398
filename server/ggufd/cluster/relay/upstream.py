"""Connections to the replicas: one pool, bodies as they come, no time limit but that of connecting.

A process that hangs keeps its connections. But it is missing among the replicas some seconds later, and where it has
said nothing for as long its requests are taken for lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from typing import Any

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from ggufd.cluster.replicas import Replica

_CONNECT_S = 2.0
"""Machines of one network answer in a millisecond; one that is gone answers never."""

_KEEP_ALIVE_S = 30.0
"""Shorter than the replicas keep an idle connection: who closes it first must be the one who asks."""

_OWN = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
"""What aiohttp would add to what the client sent."""


class ReplicaLost(Exception):
    """A replica that cannot be reached, or whose answer broke off. `was_sent` says that it may have the request."""

    def __init__(self, replica: Replica, why: str, *, was_sent: bool) -> None:
        super().__init__(f"{replica.id}: {why}")
        self.replica = replica
        self.was_sent = was_sent


class Upstream:
    """Client of the replicas."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    @contextlib.asynccontextmanager
    async def asked(
        self, replica: Replica, method: str, target: str, headers: CIMultiDict[str], body: Any = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer of a replica; its connection is closed at once when it was not read to its end.

        Raises ReplicaLost.
        """
        try:
            answer = await self._open().request(
                method,
                URL(replica.url + target, encoded=True),
                headers=headers,
                data=body or None,
                allow_redirects=False,
                skip_auto_headers=_OWN,
            )
        except aiohttp.ClientConnectorError as error:
            raise ReplicaLost(replica, str(error), was_sent=False) from None
        except aiohttp.ConnectionTimeoutError as error:
            raise ReplicaLost(replica, str(error), was_sent=False) from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise ReplicaLost(replica, str(error), was_sent=True) from None
        try:
            yield answer
        finally:
            # Gives the connection back to the pool where the answer is whole.
            answer.close()

    def _open(self) -> aiohttp.ClientSession:
        """The session, made in the loop that asks first."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                max_line_size=1 << 16,
                max_field_size=1 << 16,
            )
        return self._session

    async def close(self) -> None:
        """End all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None


@contextlib.contextmanager
def losing(replica: Replica) -> Iterator[None]:
    """Context in which an answer is read. Raises ReplicaLost where it breaks off."""
    try:
        yield
    except (aiohttp.ClientError, ConnectionError) as error:
        raise ReplicaLost(replica, str(error) or type(error).__name__, was_sent=True) from None


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a refusal names; those that name none come last."""
    try:
        return max(0.0, float(headers.get("Retry-After", "")))
    except ValueError:
        return math.inf


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
        """End what waits for replicas that have been gone and silent for a while.

        For a while: who lists the replicas may have been started again, and know only some of them yet.
        """
        now_s = asyncio.get_running_loop().time()
        for exchange in self._open:
            if exchange.replica.id in present:
                exchange.seen_s = now_s
            elif now_s - max(exchange.heard_s, exchange.seen_s) >= self._silent_s:
                exchange.limit.reschedule(now_s)


class Exchange:
    """One request to one replica. `heard_s` is when it last said something, `seen_s` when it was last listed."""

    __slots__ = ("_now", "heard_s", "limit", "replica", "seen_s")

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.limit = asyncio.timeout(None)
        self._now = asyncio.get_running_loop().time
        self.heard_s = self.seen_s = self._now()

    def hear(self) -> None:
        """The replica said something."""
        self.heard_s = self._now()
