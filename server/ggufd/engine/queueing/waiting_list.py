"""Waiting queue: entries in the order of service, and the refusals when too many wait, or one too long.

    between accounts   the one that was served least, by its weight (`fairness`)
    within an account  by priority, then first come, first served; `aging_s` seconds of waiting make up for one
                       step of priority, so nothing starves

With one account and one priority that is first come, first served. Background work comes last; it is never refused for
the number of those that wait, nor for how long it waits. Knows no slots and no charges.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from ggufd.engine.messages.requests import EmbedRequest, EngineRequest
from ggufd.engine.queueing.fairness import Accounts, TokenCounters
from ggufd.errors import EngineFailure, QueueTimeout
from ggufd.keys.principal import BACKGROUND


class Waits(Protocol):
    """Entry of a waiting queue: one sequence, or one embedding request. `serial` is the order of arrival."""

    arrival_s: float
    serial: int

    @property
    def request(self) -> EngineRequest | EmbedRequest: ...
    @property
    def priority(self) -> int: ...
    @property
    def is_first(self) -> bool:
        """Whether it stands for a request of which nothing was admitted yet."""


Entry = TypeVar("Entry", bound=Waits)


class WaitingList(Generic[Entry]):
    """Waiting entries, none longer than `max_wait_s` seconds. How many there may be is decided before they come.

    In `accounts` more than these entries may be counted: what else is computed for an account counts too.
    """

    def __init__(self, max_wait_s: float, *, accounts: Accounts | None = None, aging_s: float = 30.0) -> None:
        self.max_wait_s = max_wait_s
        self.accounts = accounts or Accounts()
        self._aging_s = aging_s
        self._waiting: dict[str, list[Entry]] = {}
        self._n_pushed = 0

    def __len__(self) -> int:
        return sum(len(entries) for entries in self._waiting.values())

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __iter__(self) -> Iterator[Entry]:
        """The order of service as things stand at each step of the loop: taking an entry changes which comes next.

        An account that runs as much as it may is left out.
        """
        rest = {account: deque(entries) for account, entries in self._waiting.items()}
        while able := [account for account, entries in rest.items() if entries and self._may_run(entries[0])]:
            yield self._pop(rest[self.counters.least(able)])

    @property
    def counters(self) -> TokenCounters:
        return self.accounts.counters

    @property
    def n_background(self) -> int:
        """Waiting entries of background work."""
        return len(self._waiting.get(BACKGROUND, ()))

    def _foreground(self) -> Iterator[Entry]:
        for account, entries in self._waiting.items():
            if account != BACKGROUND:
                yield from entries

    def waiting(self) -> Iterator[Entry]:
        """All waiting entries, in no order that means anything."""
        for entries in self._waiting.values():
            yield from entries

    def of_request(self, request_id: int) -> list[Entry]:
        return [entry for entry in self.waiting() if entry.request.request_id == request_id]

    def heads(self) -> Iterator[Entry]:
        """The first entry of every account that may run more, the account that was served least first.

        None of background work.
        """
        accounts = [account for account in self._waiting if account != BACKGROUND]
        for account in sorted(accounts, key=self.counters.__getitem__):
            entries = self._waiting.get(account)
            if entries and self._may_run(entries[0]):
                yield entries[0]

    def foreseen_order(self, cost: Callable[[Entry], float]) -> Iterator[Entry]:
        """The order of service if nothing else comes, and every entry is charged what `cost` says.

        Without background work, whose turn nobody asks for.
        """
        rest = {account: deque(entries) for account, entries in self._waiting.items() if account != BACKGROUND}
        counters = {account: self.counters[account] for account in rest}
        while rest:
            account = min(rest, key=counters.__getitem__)
            entry = self._pop(rest[account])
            yield entry
            counters[account] += cost(entry) / entry.request.principal.limits.weight
            if not rest[account]:
                del rest[account]

    def _pop(self, entries: deque[Entry]) -> Entry:
        """Take the next of an account's entries out of them."""
        return entries.popleft()

    def rank(self, entry: Entry) -> tuple[float, int]:
        """Sort key of an account's entries, lowest first: seconds, and the order of arrival among equals."""
        return entry.arrival_s + entry.priority * self._aging_s, entry.serial

    # --- refusals ---------------------------------------------------------------------------------------------------

    def expired(self, now_s: float) -> list[Entry]:
        """First entries that have waited as long as they may; later ones of a request wait for their siblings."""
        return [one for one in self._foreground() if one.is_first and now_s - one.arrival_s > self.max_wait_s]

    def _may_run(self, entry: Entry) -> bool:
        return self.accounts.may_run(entry.request.principal)

    # --- transitions ------------------------------------------------------------------------------------------------

    def push(self, entries: list[Entry]) -> None:
        """Add the entries of one request."""
        for entry in entries:
            self._n_pushed += 1
            entry.serial = self._n_pushed
            self.insert(entry)

    def insert(self, entry: Entry) -> None:
        """Add an entry at its place in the order of its account."""
        account = entry.request.principal.account
        self.accounts.wait(account)
        insort(self._waiting.setdefault(account, []), entry, key=self.rank)

    def take(self, entry: Entry) -> None:
        """Move an entry from waiting to running."""
        self.drop(entry)
        self.accounts.run(entry.request.principal.account)

    def drop(self, entry: Entry) -> None:
        """Remove an entry."""
        account = entry.request.principal.account
        self._waiting[account].remove(entry)
        if not self._waiting[account]:
            del self._waiting[account]
        self.accounts.settle(account)

    def count(self) -> Counter[str]:
        """Waiting entries of each account. Raises `EngineFailure` where they are out of order."""
        for account, entries in self._waiting.items():
            if not entries or entries != sorted(entries, key=self.rank):
                raise EngineFailure(f"the queue of {account!r} is empty or out of order")
        lengths = {account: len(entries) for account, entries in self._waiting.items() if account != BACKGROUND}
        return Counter(lengths)


def waited_too_long(entry: Waits, now_s: float, retry_after_s: float = 1.0) -> QueueTimeout:
    """Error for an entry that has expired."""
    waited = f"the request waited {now_s - entry.arrival_s:.0f} s in the queue, as long as it may"
    return QueueTimeout(f"{waited}; try again later", retry_after_s=retry_after_s)
