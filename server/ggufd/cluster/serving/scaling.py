"""The autoscaling policy as Serve calls it: loads out of its metrics, and the pace between its calls.

Serve pickles this module by value into its controller. Knows Serve's context by its names only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ggufd.cluster.replicas import ReplicaLoad
from ggufd.cluster.routing.autoscaling import ScalingRules, ScalingState, scaled

FIGURES = ("running", "waiting", "n_slots", "wait_s", "kv_used")
"""What a replica records for the policy, of its load."""


def figures_of(load: ReplicaLoad) -> dict[str, float]:
    """What a replica tells Serve of its load."""
    return {name: float(getattr(load, name)) for name in FIGURES}


class Policy:
    """The policy, which Serve makes once, with what its config says, and calls every moment."""

    def __init__(self, shrink_after_s: float) -> None:
        self._shrink_after_s = shrink_after_s

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """How many replicas there should be, and the state for the next call."""
        rules = ScalingRules(
            context.capacity_adjusted_min_replicas,
            context.capacity_adjusted_max_replicas,
            shrink_after_s=self._shrink_after_s,
        )
        now_s = time.monotonic()
        state = ScalingState(
            context.target_num_replicas,
            _past(context.policy_state.get("more_since_s"), now_s),
            _past(context.policy_state.get("fewer_since_s"), now_s),
        )
        after = scaled(state, loads_of(context.raw_metrics or {}), rules, now_s)
        return after.n_replicas, {"more_since_s": after.more_since_s, "fewer_since_s": after.fewer_since_s}


def loads_of(metrics: Mapping[str, Mapping[Any, Any]]) -> list[ReplicaLoad]:
    """The last load of each replica that told all figures."""
    series = [metrics.get(name, {}) for name in FIGURES]
    told = set(series[0]).intersection(*series[1:])
    values = [[one[replica][-1].value for one in series] for replica in told if all(one[replica] for one in series)]
    return [
        ReplicaLoad(running=int(running), waiting=int(waiting), n_slots=int(n_slots), wait_s=wait_s, kv_used=kv_used)
        for running, waiting, n_slots, wait_s, kv_used in values
    ]


def _past(since_s: float | None, now_s: float) -> float | None:
    """A time of this machine's clock: after the controller moved to another one, it may lie ahead."""
    return None if since_s is None or since_s > now_s else since_s
