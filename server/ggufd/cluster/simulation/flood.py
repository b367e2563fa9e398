"""A key that floods a cluster: fair shares by the servers' counters, with and without the ledger between them.

One account has requests waiting at every replica; each of the others waits at a part of the replicas of its own. By
itself a replica gives the flood half of its slots. With the ledger it counts what the flood has of all of them.

The policy is that of `engine.queueing.fairness`, for all replicas at once: the account that was served least is
admitted, a prompt is charged then, tokens as they come, and what others served with the next beat. The real queues and
the real ledger are held to the same bound, at a smaller size, by tests/cluster/directory/test_fair_shares.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufd.cluster.simulation.machine import N_SLOTS

PROMPT_COST = 0.25

TOKENS_A_STEP = 5.0
"""Of a slot, in a step of one second, which is also the time between two beats."""


@dataclass(frozen=True, slots=True)
class Flood:
    """Size of the run, and what a request is."""

    n_replicas: int = 1000
    n_others: int = 19
    n_steps: int = 300
    prompt_tokens: float = 500.0
    answer_tokens: float = 200.0


@dataclass(frozen=True, slots=True)
class Flooded:
    """What came of it: shares, and by how much an account had more than one that waited where it was admitted."""

    has_ledger: bool
    share: float
    others: tuple[float, ...]
    worst: float
    bound: float

    @property
    def fair_share(self) -> float:
        """What the flood should have."""
        return 1 / (len(self.others) + 1)

    @property
    def holds(self) -> bool:
        """Whether nobody had more than the bound."""
        return self.worst <= self.bound


class _Servers:
    """Counters, slots and waiting accounts of all replicas. Account 0 is the flood."""

    def __init__(self, flood: Flood) -> None:
        self._flood = flood
        n_accounts = flood.n_others + 1
        self.waits = np.zeros((flood.n_replicas, n_accounts), dtype=bool)
        self.waits[:, 0] = True
        self.waits[np.arange(flood.n_replicas), 1 + np.arange(flood.n_replicas) % flood.n_others] = True
        self.counters = np.zeros((flood.n_replicas, n_accounts))
        self.served = np.zeros((flood.n_replicas, n_accounts))
        self.worst = 0.0
        self._left = np.zeros((flood.n_replicas, N_SLOTS))
        self._owner = np.zeros((flood.n_replicas, N_SLOTS), dtype=np.int64)
        # Slots are filled one after the other, as if requests had come so: otherwise all would end at once.
        self._lengths = flood.answer_tokens * np.linspace(0.25, 1.75, N_SLOTS)

    def step(self) -> None:
        """One second: free slots go to the account that was served least, then every slot computes its tokens."""
        for slot in range(N_SLOTS):
            self._admit(slot, np.flatnonzero(self._left[:, slot] <= 0))
        for slot in range(N_SLOTS):
            self._charge(np.arange(len(self._left)), self._owner[:, slot], TOKENS_A_STEP)
            self._left[:, slot] -= TOKENS_A_STEP

    def _admit(self, slot: int, replicas: NDArray[np.int64]) -> None:
        if not len(replicas):
            return
        counters = np.where(self.waits[replicas], self.counters[replicas], np.inf)
        chosen = counters.argmin(axis=1)
        totals = self.served.sum(axis=0)
        least = np.where(self.waits[replicas], totals, np.inf).min(axis=1)
        self.worst = max(self.worst, float((totals[chosen] - least).max()))
        self._owner[replicas, slot] = chosen
        self._left[replicas, slot] = self._lengths[slot]
        self._charge(replicas, chosen, PROMPT_COST * self._flood.prompt_tokens)

    def _charge(self, replicas: NDArray[np.int64], accounts: NDArray[np.int64], cost: float) -> None:
        self.counters[replicas, accounts] += cost
        self.served[replicas, accounts] += cost

    def charge_elsewhere(self, costs: NDArray[np.float64]) -> None:
        """What others served, by replica and account; who does not wait at a replica has saved up nothing there."""
        least = np.where(self.waits, self.counters, np.inf).min(axis=1, keepdims=True)
        is_lifted = ~self.waits & (costs > 0)
        self.counters = np.where(is_lifted, np.maximum(self.counters, least), self.counters) + costs


def flooded(flood: Flood, *, has_ledger: bool) -> Flooded:
    """The run. A beat tells what was served until it, and is charged with the next one."""
    servers = _Servers(flood)
    told, before = servers.served.copy(), servers.served.copy()
    most_untold = 0.0
    for _ in range(flood.n_steps):
        servers.step()
        most_untold = max(most_untold, float((servers.served - before).sum(axis=0).max()))
        if has_ledger:
            added = told - before
            servers.charge_elsewhere(added.sum(axis=0) - added)
        before, told = told, servers.served.copy()
    totals = servers.served.sum(axis=0) / servers.served.sum()
    after_chosen = PROMPT_COST * flood.prompt_tokens + N_SLOTS * flood.answer_tokens * 1.75
    bound = 2 * most_untold + after_chosen
    return Flooded(has_ledger, float(totals[0]), tuple(float(one) for one in totals[1:]), servers.worst, bound)
