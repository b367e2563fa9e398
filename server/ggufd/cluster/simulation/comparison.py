"""Comparison of routing policies over the same workload, and what a tenth of the replicas lost does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ggufd.cluster.simulation.machine import SimulatedServer
from ggufd.cluster.simulation.orders import Orders
from ggufd.cluster.simulation.policies import (
    AffinePolicy,
    HashPolicy,
    PrefixTreePolicy,
    RoutingPolicy,
    TwoChoicesPolicy,
)
from ggufd.cluster.simulation.run import ClusterRun, Loss, RunFigures, Scale, one_machine
from ggufd.cluster.simulation.workload import ChatWorkload

_TREE_TOKENS = 100_000
"""Of one replica's tree: 400,000 characters, Ray's bound, at four a token."""

_SEED = 20240711


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One line of the table: a policy, and what it has come to."""

    name: str
    measured: RunFigures

    def line(self, one: RunFigures) -> str:
        """The row as text; `one` is the machine of the same total capacity."""
        measured = self.measured
        return (
            f"{self.name:28s} {measured.cached_share:7.3f} {measured.cached_share / one.cached_share:8.3f} "
            f"{measured.busiest:8.2f} {measured.use:5.2f} {measured.wait_s(50):8.2f} {measured.wait_s(99):8.2f} "
            f"{measured.n_requests:9d} {measured.left_share:6.3f}"
        )


HEAD = (
    f"{'policy':28s} {'cached':>7s} {'of one':>8s} {'busiest':>8s} {'use':>5s} {'p50 s':>8s} {'p99 s':>8s}"
    f" {'turns':>9s} {'left':>6s}"
)
"""Cached share, by that of one machine; busiest replica by the mean; share of slots used; time to the first token."""


def _names(scale: Scale) -> list[str]:
    return [f"replica-{index}" for index in range(scale.n_replicas)]


def _policies(scale: Scale, workload: ChatWorkload, orders: Orders) -> dict[str, Callable[[], RoutingPolicy]]:
    n = scale.n_replicas
    return {
        "ggufd": lambda: AffinePolicy(orders, scale.n_ingresses),
        "ggufd, moves untold": lambda: AffinePolicy(orders, scale.n_ingresses, tells=False),
        "consistent hashing": lambda: HashPolicy(orders),
        "power of two": lambda: TwoChoicesPolicy(workload, n),
        "prefix tree": lambda: PrefixTreePolicy(workload, n, float("inf"), _TREE_TOKENS),
        "prefix tree, guarded": lambda: PrefixTreePolicy(workload, n, 10, _TREE_TOKENS),
    }


POLICIES = ("ggufd", "ggufd, moves untold", "consistent hashing", "power of two", "prefix tree", "prefix tree, guarded")


def run_policy(scale: Scale, name: str, loss: Loss | None = None) -> RunFigures:
    """A run of one policy."""
    workload = ChatWorkload(scale.n_chats, _SEED)
    orders = Orders(_names(scale))
    policy = _policies(scale, workload, orders)[name]()
    machines = [SimulatedServer(decode_tok_s=scale.decode_tok_s) for _ in range(scale.n_replicas)]
    return ClusterRun(scale, workload, policy, machines, orders, loss).run()


def run_one_machine(scale: Scale) -> RunFigures:
    """A run on one machine that has all slots and keeps all chats."""
    single = replace(scale, n_replicas=1, n_ingresses=1)
    workload = ChatWorkload(scale.n_chats, _SEED)
    orders = Orders(_names(single))
    return ClusterRun(single, workload, HashPolicy(orders), [one_machine(scale)], orders).run()


def compared(scale: Scale) -> Iterator[ComparisonRow]:
    """One machine first, then all policies; each as soon as it has run."""
    yield ComparisonRow("one machine", run_one_machine(scale))
    for name in POLICIES:
        yield ComparisonRow(name, run_policy(scale, name))


def lost(scale: Scale, *, part: float = 0.1, is_drained: bool = False) -> RunFigures:
    """A run of this project's policy in which a part of the replicas goes, after a third of what is measured.

    With nothing lost it is what to compare with: turns that are first after any moment come after longer pauses than
    others, so less of their histories is kept.
    """
    at_s = scale.warm_s + (scale.ends_s - scale.warm_s) / 3
    return run_policy(scale, "ggufd", Loss(at_s, part, is_drained))
