"""Autoscaling policy: how many replicas there should be, by what those that run have told. Pure functions.

What is needed now is the greatest of three numbers:

    slots         requests that run or wait, by the slots of a replica, `use` of which may be taken
    first token   as many times more as the mean forecast of the wait is longer than `wait_s`, at most twice
    cache         as many times more as running requests hold more than `kv_used` of it, at most twice

A replica takes long to start and loses chats when it ends, so the number follows that with a pace: up when more was
needed for `grow_after_s` on end, down only when less was needed, with room to spare, for `shrink_after_s` since the
last change, and then a fifth at a time. What is needed is counted in replicas that tell, not in those that start: one
that is on its way is not asked for again. So under any load a number that went up comes down `shrink_after_s` later at
the earliest, and a load that stays gives a number that stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ggufd.cluster.replicas import ReplicaLoad

_MOST_GROWTH = 2.0
"""Times as many replicas at once: a forecast under overload has no bound."""

_SHRINK_PART = 0.2


@dataclass(frozen=True, slots=True)
class ScalingRules:
    """Bounds and pace of the number of replicas.

    `use` is the share of the slots that may be taken before there are more replicas, `idle_use` what is taken at most
    of those that stay when there are fewer; between the two nothing changes.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    use: float = 0.8
    idle_use: float = 0.5
    wait_s: float = 2.0
    kv_used: float = 0.9
    grow_after_s: float = 5.0
    shrink_after_s: float = 300.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ValueError("expected 1 <= min_replicas <= max_replicas")
        if not 0 < self.idle_use < self.use <= 1:
            raise ValueError("expected 0 < idle_use < use <= 1")

    def within(self, n_replicas: int) -> int:
        """The nearest number that is allowed."""
        return min(max(n_replicas, self.min_replicas), self.max_replicas)


@dataclass(frozen=True, slots=True)
class ScalingState:
    """How many replicas are wanted, and since when more or fewer than these would have been right; None is not now."""

    n_replicas: int
    more_since_s: float | None = None
    fewer_since_s: float | None = None


def needed_replicas(loads: Sequence[ReplicaLoad], rules: ScalingRules, use: float) -> int:
    """How many replicas are needed for what the present ones do, if `use` of their slots may be taken."""
    loads = [load for load in loads if not load.is_draining]
    if not loads:
        return 0
    n = len(loads)
    n_requests = sum(load.running + load.waiting for load in loads)
    n_slots = sum(max(1, load.n_slots) for load in loads) / n
    wait_s = sum(load.wait_s for load in loads) / n
    kv_used = sum(load.kv_used for load in loads) / n
    strain = max(wait_s / rules.wait_s, kv_used / rules.kv_used)
    by_strain = n * min(strain, _MOST_GROWTH) if strain > 1 else 0
    return math.ceil(max(n_requests / (n_slots * use), by_strain) - 1e-9)


def scaled(state: ScalingState, loads: Sequence[ReplicaLoad], rules: ScalingRules, now_s: float) -> ScalingState:
    """The state after a look at the loads, at any interval. Without any load the number stays: nobody can tell."""
    n_now = rules.within(state.n_replicas)
    if not loads:
        return ScalingState(n_now)
    if rules.within(needed_replicas(loads, rules, rules.use)) > n_now:
        return _grown(state, n_now, loads, rules, now_s)
    if rules.within(needed_replicas(loads, rules, rules.idle_use)) < n_now:
        return _shrunk(state, n_now, loads, rules, now_s)
    return ScalingState(n_now)


def _grown(
    state: ScalingState, n_now: int, loads: Sequence[ReplicaLoad], rules: ScalingRules, now_s: float
) -> ScalingState:
    since_s = now_s if state.more_since_s is None else state.more_since_s
    if now_s - since_s < rules.grow_after_s:
        return ScalingState(n_now, more_since_s=since_s)
    most = math.ceil(n_now * _MOST_GROWTH)
    return ScalingState(rules.within(min(most, needed_replicas(loads, rules, rules.use))))


def _shrunk(
    state: ScalingState, n_now: int, loads: Sequence[ReplicaLoad], rules: ScalingRules, now_s: float
) -> ScalingState:
    """A fifth fewer, but no fewer than are needed with room to spare."""
    since_s = now_s if state.fewer_since_s is None else state.fewer_since_s
    if now_s - since_s < rules.shrink_after_s:
        return ScalingState(n_now, fewer_since_s=since_s)
    fewer = n_now - max(1, int(n_now * _SHRINK_PART))
    return ScalingState(rules.within(max(fewer, needed_replicas(loads, rules, rules.idle_use))))
