"""Ledger of served tokens: what each account was served by all replicas, and by all but one since that one last asked.

A replica tells a counter for each account, which only grows, but for two cases: a replica that starts again counts from
0, and one that has more accounts than it keeps counters begins some of them anew. Knows no time and no addresses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from ggufd.errors import EngineFailure

MAX_ACCOUNTS = 1024
"""So many accounts are kept, those that were served last. Without keys an address may be one, and these are many."""

_ROUNDING = 1e-6


@dataclass(slots=True)
class _Book:
    """One replica: its counters as it told them, and the sums of all as they were when it last asked."""

    instance: str
    told: dict[str, float] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)


class ServedLedger:
    """Sums of the replicas' counters.

    Memory is bounded by accounts times replicas. An account that is dropped and comes back starts at 0 for everybody.
    """

    def __init__(self, max_accounts: int = MAX_ACCOUNTS) -> None:
        self._max_accounts = max_accounts
        self._totals: dict[str, float] = {}
        self._books: dict[str, _Book] = {}

    @property
    def totals(self) -> Mapping[str, float]:
        """What each account was served since the ledger began, the latest last."""
        return self._totals

    @property
    def replica_ids(self) -> Set[str]:
        """The replicas that are known."""
        return self._books.keys()

    def post(self, replica_id: str, instance: str, served: Mapping[str, float]) -> dict[str, float]:
        """Add what a replica served since it last told, and return what all others served since then.

        `instance` changes with each start of the replica. What it served before the ledger knew it is not counted, as
        that may have been days ago: a ledger that is lost and comes back charges nobody.
        """
        book = self._books.get(replica_id)
        if book is None:
            book = self._books[replica_id] = _Book(instance, _valid(served, self._max_accounts))
            book.seen = dict(self._totals)
            return {}
        if book.instance != instance:
            book.instance, book.told = instance, {}
        added = _added(book, _valid(served, self._max_accounts), self._max_accounts)
        for account, tokens in added.items():
            # The account goes to the end: it was served last.
            self._totals[account] = self._totals.pop(account, 0.0) + tokens
        others = {
            account: tokens
            for account, total in self._totals.items()
            if (tokens := total - book.seen.get(account, 0.0) - added.get(account, 0.0)) > _ROUNDING
        }
        book.seen = dict(self._totals)
        self._drop_accounts()
        return others

    def drop(self, replica_id: str) -> None:
        """Forget a replica. What it served stays in the sums."""
        self._books.pop(replica_id, None)

    def _drop_accounts(self) -> None:
        """Back to the bound, once it is exceeded twice over: each time all books are gone through."""
        if len(self._totals) <= 2 * self._max_accounts:
            return
        for account in list(self._totals)[: -self._max_accounts]:
            del self._totals[account]
        for book in self._books.values():
            book.seen = {account: seen for account, seen in book.seen.items() if account in self._totals}

    def check_integrity(self) -> None:
        """Raise `EngineFailure` unless every number is finite, within the sums, and there are not too many."""
        if len(self._totals) > 2 * self._max_accounts:
            raise EngineFailure("the ledger keeps more accounts than it may")
        if not all(0 <= total < math.inf for total in self._totals.values()):
            raise EngineFailure("the ledger has a sum that is none")
        for replica_id, book in self._books.items():
            if len(book.told) > self._max_accounts:
                raise EngineFailure(f"the ledger keeps more counters of {replica_id} than it may")
            if any(seen > self._totals.get(account, -1.0) for account, seen in book.seen.items()):
                raise EngineFailure(f"{replica_id} has seen more in the ledger than there is")


def _added(book: _Book, served: Mapping[str, float], max_accounts: int) -> dict[str, float]:
    """What a replica served since it last told, by its counters then and now, which `book` has from now on.

    Tokens that were charged too early are given back, so a counter may fall by a prompt: it counts again from where it
    was. One that fell by more than half began anew. One that is not told, as while an engine sleeps, is what it was.
    """
    added = {}
    for account, now in served.items():
        before = book.told.pop(account, 0.0)
        is_new = now < before / 2
        added[account] = now if is_new else max(0.0, now - before)
        book.told[account] = now if is_new else max(now, before)
    for account in list(book.told)[:-max_accounts]:
        del book.told[account]
    return {account: tokens for account, tokens in added.items() if tokens > 0}


def _valid(served: Mapping[str, float], most: int) -> dict[str, float]:
    """Counters that are numbers, the last `most` of them: a replica tells the latest account last."""
    valid = [(account, float(tokens)) for account, tokens in served.items() if 0 <= tokens < math.inf]
    return dict(valid[-most:])
