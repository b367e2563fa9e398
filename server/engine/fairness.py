"""Fair shares between accounts: a counter of what each was served, and the least served goes first.

This is the Virtual Token Counter of "Fairness in Serving Large Language Models" (arXiv 2401.00588). Prompts are charged
when they are admitted, generated tokens as they come, each divided by the account's weight. Who begins to wait is
lifted to the least counter of those that wait already, so nobody saves up by being idle. While two accounts both
have work waiting, their counters differ by at most one prompt and what the slots can generate meanwhile; so what they
get in any such time differs by at most twice that. Knows no requests and no slots.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable


class TokenCounters:
    """Weighted cost served to each account that is active, and to those that got more than their share lately."""

    def __init__(self) -> None:
        self._counters: dict[str, float] = {}
        self._floor = 0.0

    def __getitem__(self, account: str) -> float:
        return self._counters.get(account, self._floor)

    def __len__(self) -> int:
        return len(self._counters)

    def lift(self, account: str, waiting: Iterable[str]) -> None:
        """The account begins to wait beside those that do already."""
        self._floor = min((self[other] for other in waiting), default=self._floor)
        self._counters[account] = max(self[account], self._floor)

    def settle(self, account: str) -> None:
        """The account waits no more; who begins to wait when nobody else does starts where it stands."""
        self._floor = self[account]

    def charge(self, account: str, cost: float, weight: float) -> None:
        """Add a cost to what the account was served; a negative one takes back what was charged too early."""
        self._counters[account] = self[account] + cost / weight

    def least(self, accounts: Iterable[str]) -> str:
        """The least served of some accounts; of equals the first."""
        return min(accounts, key=self.__getitem__)

    def forget(self, active: Collection[str]) -> None:
        """Drop the counters that make no difference: of accounts that are idle and would be lifted anyway."""
        self._counters = {
            account: counter
            for account, counter in self._counters.items()
            if account in active or counter > self._floor
        }
