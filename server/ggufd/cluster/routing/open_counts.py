"""Open requests of one ingress at each replica, and what they say about load that the replicas have not told yet."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ggufd.cluster.replicas import Replica, ReplicaLoad

_FIRST_DURATION_S = 5.0
"""Expected duration of a generation before any has ended."""

_MEMORY = 32
"""Number of generations that the mean duration is of, about."""

_SPARE = 64
"""So many replicas more than there are may be remembered."""


@dataclass(slots=True)
class _AtReplica:
    """Number of this ingress' open requests at one replica, and how many there were at the last beat."""

    n_open: int = 0
    load: ReplicaLoad | None = None
    n_at_beat: int = 0


class OpenCounts:
    """Counters of open requests, and the mean duration of the generations that ended.

    A replica tells its load once a second, and what was sent there since is not in it: a burst would go to one replica
    as a whole. So the number of requests there is estimated from what it told and from how the ingress' own number has
    changed since; and it is no less than the ingress' own number.

    Files of the page, lists and refusals are over in milliseconds and take no slot: they are no part of the mean, by
    which the wait for a slot is forecast.
    """

    def __init__(self) -> None:
        self._at: dict[str, _AtReplica] = {}
        self.mean_duration_s = _FIRST_DURATION_S
        self._n_ended = 0

    def opened(self, replica_id: str) -> None:
        """Count a request more."""
        self._at.setdefault(replica_id, _AtReplica()).n_open += 1

    def closed(self, replica_id: str, generation_s: float | None = None) -> None:
        """Count a request less, and how long it took if it generated."""
        at = self._at.get(replica_id)
        if at is not None and at.n_open:
            at.n_open -= 1
        if generation_s is not None:
            self._n_ended = min(self._n_ended + 1, _MEMORY)
            self.mean_duration_s += (generation_s - self.mean_duration_s) / self._n_ended

    def n_there(self, replica: Replica) -> int:
        """Requests at a replica now, by everybody, as well as can be known."""
        told = replica.load.running + replica.load.waiting
        at = self._at.setdefault(replica.id, _AtReplica())
        n_own = at.n_open
        # Equal words are taken for the same beat: where another one said the same, as many came as went.
        if at.load != replica.load:
            at.load, at.n_at_beat = replica.load, n_own
        return max(n_own, told + n_own - at.n_at_beat, 0)

    def forget_but(self, replica_ids: Collection[str]) -> None:
        """Drop replicas that are gone, once there are many of them."""
        if len(self._at) > len(replica_ids) + _SPARE:
            known = frozenset(replica_ids)
            self._at = {name: at for name, at in self._at.items() if at.n_open or name in known}
