"""Runs of routing policies over the same workload, of one machine beside them, and of replicas that are lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ggufd.cluster.simulation.machine import SimulatedServer
from ggufd.cluster.simulation.orders import Orders
from ggufd.cluster.simulation.policies import (
    AffinePolicy,
    HashPolicy,
    PrefixTreePolicy,
    RoutingPolicy,
    TwoChoicesPolicy,
)
from ggufd.cluster.simulation.run import ClusterRun, Loss, RunFigures, Scale, Tell, one_machine, tell_nobody
from ggufd.cluster.simulation.workload import ChatWorkload

_TREE_TOKENS = 100_000
"""Of one replica's tree: 400,000 characters, Ray's bound, at four a token."""

OURS = "ggufd"
POLICIES = (OURS, "ggufd, moves untold", "power of two", "consistent hashing", "prefix tree", "prefix tree, guarded")


def _names(scale: Scale) -> list[str]:
    return [f"replica-{index}" for index in range(scale.n_replicas)]


def _policies(scale: Scale, workload: ChatWorkload, orders: Orders) -> dict[str, Callable[[], RoutingPolicy]]:
    n = scale.n_replicas
    return {
        OURS: lambda: AffinePolicy(orders, scale.n_ingresses),
        "ggufd, moves untold": lambda: AffinePolicy(orders, scale.n_ingresses, tells=False),
        "consistent hashing": lambda: HashPolicy(orders),
        "power of two": lambda: TwoChoicesPolicy(workload, n),
        "prefix tree": lambda: PrefixTreePolicy(workload, n, float("inf"), _TREE_TOKENS),
        "prefix tree, guarded": lambda: PrefixTreePolicy(workload, n, 10, _TREE_TOKENS),
    }


def run_policy(scale: Scale, name: str, loss: Loss | None = None, tell: Tell = tell_nobody) -> RunFigures:
    """A run of one policy."""
    workload = ChatWorkload(scale.n_chats, scale.seed)
    orders = Orders(_names(scale))
    policy = _policies(scale, workload, orders)[name]()
    machines = [SimulatedServer(decode_tok_s=scale.decode_tok_s) for _ in range(scale.n_replicas)]
    return ClusterRun(scale, workload, policy, machines, orders, loss).run(tell)


def run_one_machine(scale: Scale, tell: Tell = tell_nobody) -> RunFigures:
    """A run on one machine that has all slots and keeps all chats."""
    single = replace(scale, n_replicas=1, n_ingresses=1)
    workload = ChatWorkload(scale.n_chats, scale.seed)
    orders = Orders(_names(single))
    return ClusterRun(single, workload, HashPolicy(orders), [one_machine(scale)], orders).run(tell)


def lost(scale: Scale, *, part: float = 0.1, is_drained: bool = False, tell: Tell = tell_nobody) -> RunFigures:
    """A run of this project's policy in which a part of the replicas goes, after a third of what is measured.

    With nothing lost it is what to compare with: turns that are first after any moment come after longer pauses than
    others, so less of their histories is kept.
    """
    at_s = scale.warm_s + (scale.ends_s - scale.warm_s) / 3
    return run_policy(scale, OURS, Loss(at_s, part, is_drained), tell)
