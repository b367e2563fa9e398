"""Connections to the replicas: one pool, bodies as they come, no time limit but that of connecting."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Iterator, Mapping
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
