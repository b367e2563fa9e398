"""Replicas of a cluster as its ingress sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """What a replica says of itself each second.

    `wait_s` is the forecast of the time that a request would wait there now, `prefill_tok_s` the rate at which it
    computes prompts (0 while unknown), `kv_used` the used share of its cache.
    """

    running: int = 0
    waiting: int = 0
    n_slots: int = 1
    wait_s: float = 0.0
    prefill_tok_s: float = 0.0
    kv_used: float = 0.0
    is_draining: bool = False


@dataclass(frozen=True, slots=True)
class Replica:
    """One server of the cluster. `url` has no path, and no slash at its end."""

    id: str
    url: str
    load: ReplicaLoad = field(default_factory=ReplicaLoad)


class Replicas(Protocol):
    """The replicas that there are now."""

    async def all(self) -> Sequence[Replica]:
        """Every known replica, draining ones too."""
