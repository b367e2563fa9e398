"""Fair shares over the servers of a cluster, simulated: real queues, the real ledger, and the bound that holds."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufd.cluster.directory.directory import Directory
from ggufd.cluster.replicas import ReplicaLoad
from ggufd.keys.ring import Limits
from tests.engine.queueing.test_queue import PROMPT_COST, Simulation

BEAT = 5
"""Steps between two beats of a replica."""

LAG = 2 * BEAT
"""What one served is told at its next beat, and charged at the next beat of the other."""

LOAD = ReplicaLoad()


class Cluster:
    """Replicas of the simulation in `test_queue`, a directory, and a beat of each replica every few steps."""

    def __init__(self, n_replicas: int, n_slots: int, limits: dict[str, Limits], *, has_ledger: bool = True) -> None:
        self.replicas = [Simulation(n_slots, limits) for _ in range(n_replicas)]
        self.limits = limits
        self.directory = Directory() if has_ledger else None
        self.now = 0
        self.history: deque[list[dict[str, float]]] = deque(maxlen=LAG + 2)
        for index in range(n_replicas):
            self._beat(index)
        self.history.append(self._served())

    def step(self) -> None:
        """One step of all replicas, and the beats that are due."""
        self.now += 1
        for replica in self.replicas:
            replica.step()
        self.history.append(self._served())
        for index in range(len(self.replicas)):
            if (self.now + index) % BEAT == 0:
                self._beat(index)

    def _beat(self, index: int) -> None:
        if self.directory is None:
            return
        replica = self.replicas[index]
        others = self.directory.beat(f"r{index}", "", LOAD, replica.queue.accounts.served, self.now)
        self.directory.check_integrity()
        weights = {name: self.limits.get(name, Limits()).weight for name in others}
        replica.queue.accounts.charge_elsewhere([(name, cost / weights[name]) for name, cost in others.items()])

    def _served(self) -> list[dict[str, float]]:
        return [dict(replica.served) for replica in self.replicas]

    def served(self, account: str) -> float:
        """What all replicas served an account, by its weight."""
        return sum(replica.served[account] for replica in self.replicas)

    def untold(self, account: str, index: int) -> float:
        """What all replicas but one served an account so lately that this one may not have been told."""
        before = self.history[0]
        now = self.history[-1]
        return sum(
            now[other].get(account, 0.0) - before[other].get(account, 0.0)
            for other in range(len(self.replicas))
            if other != index
        )

    def is_waiting(self, account: str, index: int) -> bool:
        return account in self.replicas[index].queue.accounts.waiting


class FairWatch:
    """One account that waits at one replica: nobody else is admitted there who had more of the cluster since then."""

    def __init__(self, account: str, other: str, index: int) -> None:
        self.account, self.other, self.index = account, other, index
        self.start: tuple[float, float] | None = None
        self.n_admitted = 0
        self.worst = 0.0

    def look(self, cluster: Cluster, admitted: Sequence[str]) -> None:
        """After a step, in which the replica admitted requests of these accounts."""
        if not cluster.is_waiting(self.account, self.index):
            self.start = None
            return
        own, others = cluster.served(self.account), cluster.served(self.other)
        if self.start is None:
            # What was served before it began to wait, and is told after, is charged too.
            self.start = own - cluster.untold(self.account, self.index), others
            return
        if self.other in admitted:
            excess = (others - self.start[1]) - (own - self.start[0]) - cluster.untold(self.other, self.index)
            self.worst = max(self.worst, excess)
            self.n_admitted += 1


MAX_PROMPT, MAX_ANSWER = 40, 20


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(2, 4),
    st.integers(1, 4),
    st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=2, max_size=3),
)
def test_nobody_is_admitted_who_had_more_of_the_cluster_than_one_that_waits_there(
    seed: int, n_replicas: int, n_slots: int, weights: list[float]
) -> None:
    draw = random.Random(seed)
    limits = {f"account {i}": Limits(weight=weight) for i, weight in enumerate(weights)}
    cluster = Cluster(n_replicas, n_slots, limits)
    eager = {(name, index): draw.choice([0.0, 0.1, 1.0]) for name in limits for index in range(n_replicas)}
    watches = [
        FairWatch(one, other, index)
        for one in limits
        for other in limits
        for index in range(n_replicas)
        if one != other
    ]
    for _ in range(150):
        n_known = [len(replica.admitted) for replica in cluster.replicas]
        owners: list[dict[int, str]] = [{} for _ in cluster.replicas]
        for (name, index), rate in eager.items():
            replica = cluster.replicas[index]
            if draw.random() < rate and len(replica.queue) < 200:
                replica.send(name, draw.randint(1, MAX_PROMPT), draw.randint(1, MAX_ANSWER))
        for index, replica in enumerate(cluster.replicas):
            owners[index] = {one.request.request_id: one.request.principal.account for one in replica.queue.waiting()}
        cluster.step()
        for watch in watches:
            known = n_known[watch.index]
            admitted = [owners[watch.index][one] for one in cluster.replicas[watch.index].admitted[known:]]
            watch.look(cluster, admitted)
    # In the step of its admission each is charged its prompt and a token, after it was chosen.
    one_step = n_slots * (PROMPT_COST * MAX_PROMPT + MAX_ANSWER) / min(weights)
    assert max(watch.worst for watch in watches) <= one_step


def flood(cluster: Cluster, n_steps: int) -> dict[str, list[float]]:
    """One key has hundreds waiting at both replicas, the other only at the second. What each had of either replica."""
    for _ in range(600):
        for replica in cluster.replicas:
            replica.send("flood", 20, 20)
        cluster.replicas[1].send("chat", 20, 20)
    for _ in range(n_steps):
        cluster.step()
    return {name: [replica.served[name] for replica in cluster.replicas] for name in ("flood", "chat")}


def test_a_key_that_floods_one_replica_has_no_more_than_its_share_of_all() -> None:
    served = flood(Cluster(2, 4, {}), 600)
    # It has the first to itself, where nobody else asks: that is its share, so the second is the other's.
    assert sum(served["flood"]) == pytest.approx(sum(served["chat"]), rel=0.05)
    assert served["flood"][1] < 0.1 * served["chat"][1]


def test_without_a_ledger_shares_are_those_of_each_replica() -> None:
    served = flood(Cluster(2, 4, {}, has_ledger=False), 600)
    assert served["flood"][1] == pytest.approx(served["chat"][1], rel=0.05)
    assert sum(served["flood"]) == pytest.approx(3 * sum(served["chat"]), rel=0.1)


def test_shares_of_the_cluster_are_those_of_the_weights() -> None:
    cluster = Cluster(3, 4, {"heavy": Limits(weight=3.0), "light": Limits(weight=1.0)})
    for _ in range(600):
        for replica in cluster.replicas:
            replica.send("heavy", 20, 20)
        cluster.replicas[0].send("light", 20, 20)
    for _ in range(500):
        cluster.step()
    # A third of the cluster is more than a quarter of it: the light one is not kept out for the others' sake.
    n_tokens = defaultdict(float, heavy=3 * cluster.served("heavy"), light=cluster.served("light"))
    assert n_tokens["light"] / sum(n_tokens.values()) == pytest.approx(0.25, abs=0.03)


def test_who_had_the_cluster_to_itself_is_not_kept_out_when_another_comes() -> None:
    cluster = Cluster(2, 4, {})
    for _ in range(400):
        cluster.replicas[0].send("early", 20, 20)
    for _ in range(300):
        cluster.step()
    before = cluster.served("early")
    for _ in range(200):
        cluster.replicas[1].send("late", 20, 20)
    for _ in range(20):
        cluster.step()
    for _ in range(200):
        cluster.replicas[1].send("early", 20, 20)
        cluster.replicas[0].send("late", 20, 20)
    for _ in range(300):
        cluster.step()
    assert cluster.served("early") - before == pytest.approx(cluster.served("late"), rel=0.1)
