"""The directory as one actor of Ray, which outlives replicas and ingresses, and its client.

It is restarted wherever there is room, without its memory: replicas tell it all again with their next beat. The
cluster's token comes with it, made by whoever was first; it is in no settings, and in no log.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from ggufd.cluster.directory.directory import Directory
from ggufd.cluster.directory.limits import AccountUse, UsedElsewhere
from ggufd.cluster.replicas import Replica, ReplicaLoad

NAME = "ggufd-directory"
NAMESPACE = "ggufd"


class DirectoryActor:
    """`Directory` with a clock and the cluster's token."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._directory = Directory()

    def token(self) -> str:
        return self._token

    def beat(
        self, replica_id: str, url: str, load: ReplicaLoad, served: Mapping[str, float], uses: Mapping[str, AccountUse]
    ) -> tuple[Mapping[str, float], Mapping[str, UsedElsewhere]]:
        now_s = time.monotonic()
        others = self._directory.beat(replica_id, url, load, served, now_s)
        return others, self._directory.share_limits(replica_id, uses, now_s)

    def replicas(self) -> Sequence[Replica]:
        return self._directory.replicas(time.monotonic())

    def exchange_moves(self, ingress_id: str, moves: Mapping[bytes, str]) -> Mapping[bytes, str]:
        return self._directory.exchange_moves(ingress_id, moves)

    def leave(self, replica_id: str) -> None:
        self._directory.leave(replica_id)


class DirectoryClient:
    """The directory from inside of Ray. It is made where there is none, with the token that is known here, if any."""

    def __init__(self) -> None:
        self._actor: Any = None
        self._token = secrets.token_urlsafe(32)

    async def token(self) -> str:
        """The cluster's token."""
        self._token = await self._call("token")
        return self._token

    async def beat(
        self, replica_id: str, url: str, load: ReplicaLoad, served: Mapping[str, float], uses: Mapping[str, AccountUse]
    ) -> tuple[Mapping[str, float], Mapping[str, UsedElsewhere]]:
        """See `Directory.beat` and `share_limits`. Raises RayError."""
        told: tuple[Mapping[str, float], Mapping[str, UsedElsewhere]] = await self._call(
            "beat", replica_id, url, load, dict(served), dict(uses)
        )
        return told

    async def replicas(self) -> Sequence[Replica]:
        """See `Directory.replicas`. Raises RayError."""
        found: Sequence[Replica] = await self._call("replicas")
        return found

    async def exchange_moves(self, ingress_id: str, moves: Mapping[bytes, str]) -> Mapping[bytes, str]:
        """See `Directory.exchange_moves`. Raises RayError."""
        told: Mapping[bytes, str] = await self._call("exchange_moves", ingress_id, dict(moves))
        return told

    async def leave(self, replica_id: str) -> None:
        """See `Directory.leave`. Raises RayError."""
        await self._call("leave", replica_id)

    async def _call(self, method: str, *arguments: Any) -> Any:
        if self._actor is None:
            self._actor = await asyncio.to_thread(_find_or_make, self._token)
        try:
            return await getattr(self._actor, method).remote(*arguments)
        except RayError:
            self._actor = None
            raise


def _find_or_make(token: str) -> Any:
    options = {
        "name": NAME,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": 0,
        "max_restarts": -1,
    }
    return ray.remote(DirectoryActor).options(**options).remote(token)


def find() -> Any:
    """The actor of a running cluster, from outside. Raises ValueError where there is none."""
    return ray.get_actor(NAME, namespace=NAMESPACE)
