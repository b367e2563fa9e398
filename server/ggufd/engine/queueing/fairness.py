"""Fair queueing between accounts: a virtual token counter of each, and the least served goes first.

This is the Virtual Token Counter (VTC) of "Fairness in Serving Large Language Models" (arXiv 2401.00588). Prompts are
charged when they are admitted, generated tokens as they come, each divided by the account's weight. An account that
begins to wait is lifted to the least counter of those that wait already, so nobody saves up by being idle. While two
accounts both have work waiting, their counters differ by at most one prompt and what the slots can generate meanwhile;
so what they get in any such time differs by at most twice that. The account of background work comes after all others:
its counter is infinite, and nothing of it is counted. Knows no requests and no slots.

In a cluster each server has counters of its own, and is told every second what the others served. That is charged here
while somebody else waits here. So no account is served here that had more of the whole cluster: since an account g
began to wait here, what any other, f, was served by all servers until its last admission here exceeds what g was by at
most 2 D, and until later by U more. D is what the other servers serve one account until that is charged here, about two
seconds' worth; U what an account can be charged after it was chosen: one prompt, and what the slots can generate
meanwhile. All of it divided by the weights. Where f has other servers to itself, it may get more from those: nothing
stands idle for fairness. What is charged for others ends with the busy period, when nobody waits: until the next one
begins, nobody was kept from anything.

Slots that an account holds at other servers count by its `max_running` as those here do. Who says how many these are
sees to it that no two servers give away the same one: see `cluster.directory.limits`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from ggufd.errors import EngineFailure
from ggufd.keys.principal import BACKGROUND, Principal

_FORGET_EVERY = 64
"""So many new counters are kept before those that make no difference are dropped."""

_MAX_SERVED = 256
"""So many accounts are reported; addresses can be many."""

_MAX_COUNTERS = 4096
"""So many accounts have a counter before those that are only served elsewhere get none."""


class TokenCounters:
    """Weighted cost served to each account that is active, and to those that got more than their share lately.

    `carried` are counters of accounts that have waited already, at another engine: the first time that one of them
    begins to wait here, it is not lifted.
    """

    def __init__(self, carried: Iterable[tuple[str, float]] = ()) -> None:
        self._counters: dict[str, float] = dict(carried)
        self._carried = set(self._counters)
        self._elsewhere: dict[str, float] = {}
        self._floor = 0.0

    def __getitem__(self, account: str) -> float:
        return math.inf if account == BACKGROUND else self._counters.get(account, self._floor)

    def __len__(self) -> int:
        return len(self._counters)

    def lift(self, account: str, waiting: Iterable[str]) -> None:
        """Raise the counter of an account that begins to wait to the least of those that wait already."""
        self._floor = min((self[other] for other in waiting), default=self._floor)
        is_carried = account in self._carried
        self._carried.discard(account)
        self._counters[account] = self[account] if is_carried else max(self[account], self._floor)

    def settle(self, account: str) -> None:
        """End the waiting of an account: one that begins to wait when no other does starts at its counter."""
        self._floor = self[account]

    def charge(self, account: str, cost: float, weight: float) -> None:
        """Add a cost to what the account was served; a negative one takes back what was charged too early."""
        self._counters[account] = self[account] + cost / weight

    def charge_elsewhere(self, account: str, cost: float, waiting: Collection[str]) -> None:
        """Add what other servers served an account. They keep it busy: it saves up no more than one that waits here."""
        if account not in waiting:
            self.lift(account, waiting)
        self._counters[account] = self[account] + cost
        self._elsewhere[account] = self._elsewhere.get(account, 0.0) + cost

    def forgive_elsewhere(self) -> None:
        """Take back what other servers served, as far as it is more than what who comes next starts at."""
        for account, cost in self._elsewhere.items():
            self._counters[account] = max(min(self[account], self._floor), self[account] - cost)
        self._elsewhere.clear()

    def least(self, accounts: Iterable[str]) -> str:
        """Least served of some accounts; of equals the first."""
        return min(accounts, key=self.__getitem__)

    def forget(self, active: Collection[str]) -> None:
        """Drop the counters that make no difference: of idle accounts, which would be lifted anyway."""
        self._counters = {
            account: counter
            for account, counter in self._counters.items()
            if account in active or account in self._carried or counter > self._floor
        }
        self._elsewhere = {account: cost for account, cost in self._elsewhere.items() if account in self._counters}


@dataclass(frozen=True, slots=True)
class Standing:
    """Number of waiting and running entries of each account."""

    waiting: Counter[str] = field(default_factory=Counter)
    running: Counter[str] = field(default_factory=Counter)


class Accounts:
    """Accounts of sequences and embedding requests: what each was served, how much of it waits and runs.

    A generated token costs its account 1, a token of a prompt or of an input to embed `prompt_cost`. `served` is all
    that it cost each of the last accounts, without their weights. `carried` is as in `TokenCounters`.
    """

    def __init__(self, prompt_cost: float = 0.25, carried: Iterable[tuple[str, float]] = ()) -> None:
        self.prompt_cost = prompt_cost
        self.counters = TokenCounters(carried)
        self.served: dict[str, float] = {}
        self.waiting: Counter[str] = Counter()
        self.running: Counter[str] = Counter()
        self._elsewhere: Counter[str] = Counter()

    def may_run(self, principal: Principal) -> bool:
        """Whether an account may run one more."""
        most, account = principal.limits.max_running, principal.account
        return most is None or self.running[account] + self._elsewhere[account] < most

    @property
    def counted(self) -> Counter[str]:
        """What counts by `max_running`: running entries of each account, here and elsewhere."""
        return self.running + self._elsewhere

    @property
    def standing(self) -> tuple[tuple[str, int, int], ...]:
        """Running and waiting entries of each account that has any here."""
        accounts = sorted(self.running.keys() | self.waiting.keys())
        return tuple((account, self.running[account], self.waiting[account]) for account in accounts)

    def hold_elsewhere(self, held: Iterable[tuple[str, int]]) -> None:
        """Count slots that accounts hold at other servers of a cluster; whoever is not named holds none there."""
        self._elsewhere = Counter(dict(held))

    def charge(self, principal: Principal, cost: float) -> None:
        """Add a cost to what an account was served."""
        if not principal.is_background:
            self.counters.charge(principal.account, cost, principal.limits.weight)
        self._note(principal.account, cost)

    def _note(self, account: str, cost: float) -> None:
        if account not in self.served and len(self.served) >= _MAX_SERVED:
            del self.served[next(iter(self.served))]
        self.served[account] = self.served.get(account, 0.0) + cost

    def charge_prompt(self, principal: Principal, n_tokens: int) -> None:
        """Charge prompt tokens; a negative number is given back."""
        self.charge(principal, self.prompt_cost * n_tokens)

    def charge_elsewhere(self, costs: Iterable[tuple[str, float]]) -> None:
        """Charge accounts what the other servers of a cluster served them lately, divided by their weights.

        Only for as long as another account waits here, which is who has less for it.
        """
        for account, cost in costs:
            if account == BACKGROUND or not self.waiting.keys() - {account}:
                continue
            if len(self.counters) >= _MAX_COUNTERS:
                self.counters.forget({*self.waiting, *self.running})
            if account in self.waiting or len(self.counters) < _MAX_COUNTERS:
                self.counters.charge_elsewhere(account, cost, self.waiting)

    def wait(self, account: str) -> None:
        """Count one waiting entry more."""
        if account == BACKGROUND:
            return
        if account not in self.waiting:
            self.counters.lift(account, self.waiting)
            if len(self.counters) % _FORGET_EVERY == 0:
                self.counters.forget({account, *self.waiting, *self.running})
        self.waiting[account] += 1

    def settle(self, account: str) -> None:
        """Count one waiting entry less."""
        if account == BACKGROUND:
            return
        _count_down(self.waiting, account)
        if account not in self.waiting:
            self.counters.settle(account)
        if not self.waiting:
            self.counters.forgive_elsewhere()

    def run(self, account: str) -> None:
        """Count one running entry more."""
        if account != BACKGROUND:
            self.running[account] += 1

    def rest(self, account: str) -> None:
        """Count one running entry less."""
        if account != BACKGROUND:
            _count_down(self.running, account)

    def check_integrity(self, *standings: Standing) -> None:
        """Raise `EngineFailure` unless these together are what was counted."""
        waiting, running = Counter[str](), Counter[str]()
        for standing in standings:
            waiting += standing.waiting
            running += standing.running
        if (waiting, running) != (self.waiting, self.running):
            raise EngineFailure("the accounts' counts of what waits and runs are wrong")


def _count_down(counter: Counter[str], account: str) -> None:
    counter[account] -= 1
    if not counter[account]:
        del counter[account]
