"""Limits of accounts over all replicas: what each may use is what the others leave.

`max_waiting` and the tokens a minute count sums: of the requests that wait elsewhere, and of what was taken elsewhere
since the last word; a replica that starts is told what all took that has not come again. `max_running` needs more, or
each replica would begin one more whenever the sum falls below the limit. So places are given out, with each replica's
word, for the time until its next one:

    within the limit   all sequences of the account, running and waiting, are no more than its limit: a replica may run
                       what the demand of the others leaves, which is at least what it asks for
    beyond it          each replica has a share of the places, dealt out one by one among those that ask; what does not
                       come out even goes round every `TURN_S`. It may use its share as far as the places are free: one
                       that had more keeps them until it has told, once more, what it runs with the less

An account that is idle can begin `max_running` at every replica in the time of two beats, which is how long it takes
until all know. From then on, as long as it asks for more than its limit, nothing begins that is too much.

A replica that is silent counts nothing here, and counts nothing of the others: both after five seconds. Knows no keys:
the limit comes with the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field

from ggufd.cluster.directory.ledger import MAX_ACCOUNTS, ServedLedger
from ggufd.errors import EngineFailure

TURN_S = 10.0
"""So long a replica keeps a place that others ask for too: giving it away takes two beats in which it may be free."""


@dataclass(frozen=True, slots=True)
class AccountUse:
    """What an account uses of its limits at one replica.

    `used_s` is what it took of its tokens a minute since the replica's start, as the time in which these come again.
    `waiting` are requests that no slot is free for; `running` are slots held, `queued` sequences that wait for one.
    """

    used_s: float = 0.0
    waiting: int = 0
    running: int = 0
    queued: int = 0
    max_running: int | None = None


@dataclass(frozen=True, slots=True)
class UsedElsewhere:
    """What it uses at all others: `running` are slots that it holds there or may take there before the next word."""

    used_s: float = 0.0
    waiting: int = 0
    running: int = 0


@dataclass(slots=True)
class _Row:
    """A replica's last word, and the places that it was given with it and with the one before."""

    uses: Mapping[str, AccountUse]
    instance: str
    n_slots: int
    told_s: float
    places: dict[str, int] = field(default_factory=dict)
    places_before: dict[str, int] = field(default_factory=dict)

    def demand(self, account: str) -> int:
        """Places that it could use."""
        use = self.uses.get(account)
        return 0 if use is None else max(use.running, min(use.running + use.queued, self.n_slots))

    def held(self, account: str, limit: int) -> int:
        """Places that may be in use: a replica still goes by what it was told before, until it tells again."""
        use = self.uses.get(account)
        if use is None or not self.demand(account):
            return 0
        return max(use.running, self.places.get(account, limit), self.places_before.get(account, 0))


class _Debts:
    """What accounts took of their tokens a minute at all replicas and has not come again, in seconds of it."""

    def __init__(self) -> None:
        self._full_at_s: dict[str, float] = {}

    def add(self, account: str, used_s: float, now_s: float) -> None:
        """Add what an account took."""
        if used_s > 0:
            self._full_at_s[account] = max(now_s, self._full_at_s.get(account, now_s)) + used_s

    def all(self, now_s: float) -> dict[str, float]:
        """What each account took; those that have all of theirs again are dropped."""
        self._full_at_s = {account: full_s for account, full_s in self._full_at_s.items() if full_s > now_s}
        return {account: full_s - now_s for account, full_s in self._full_at_s.items()}


class LimitBook:
    """What the replicas told of accounts with limits, and what each of them has to count of the others'."""

    def __init__(self, max_accounts: int = MAX_ACCOUNTS, silent_after_s: float = 5.0) -> None:
        self._max_accounts = max_accounts
        self._silent_after_s = silent_after_s
        self._used = ServedLedger(max_accounts)
        self._debts = _Debts()
        self._rows: dict[str, _Row] = {}

    def post(
        self, replica_id: str, instance: str, n_slots: int, uses: Mapping[str, AccountUse], now_s: float
    ) -> dict[str, UsedElsewhere]:
        """Take a replica's word, and return what it has to count of each account until the next one."""
        before = self._rows.get(replica_id)
        used_s = self._used_elsewhere(replica_id, instance, uses, now_s)
        row = self._rows[replica_id] = _Row(
            dict(list(uses.items())[: self._max_accounts]),
            instance,
            n_slots,
            now_s,
            places_before={} if before is None else before.places,
        )
        others = {
            name: one
            for name, one in self._rows.items()
            if name != replica_id and now_s - one.told_s <= self._silent_after_s
        }
        told = {}
        for account in self._accounts(row, others.values(), used_s):
            running = self._running_elsewhere(account, replica_id, others, now_s)
            waiting = sum(one.uses[account].waiting for one in others.values() if account in one.uses)
            told[account] = UsedElsewhere(used_s.get(account, 0.0), waiting, running)
        return {account: one for account, one in told.items() if one != UsedElsewhere()}

    def drop(self, replica_id: str) -> None:
        """Forget a replica."""
        self._rows.pop(replica_id, None)
        self._used.drop(replica_id)

    def _used_elsewhere(
        self, replica_id: str, instance: str, uses: Mapping[str, AccountUse], now_s: float
    ) -> Mapping[str, float]:
        """What the others took of an account's tokens since the replica's last word, or before it was there."""
        before = self._rows.get(replica_id)
        totals = {account: self._used.totals.get(account, 0.0) for account in uses}
        used_s = self._used.post(replica_id, instance, {account: use.used_s for account, use in uses.items()})
        debts_s = self._debts.all(now_s)
        for account, total in totals.items():
            self._debts.add(account, self._used.totals.get(account, 0.0) - total, now_s)
        return debts_s if before is None or before.instance != instance else used_s

    def _accounts(self, row: _Row, others: Iterable[_Row], used_s: Mapping[str, float]) -> list[str]:
        """Accounts with anything to tell, bounded; those that the replica has told of first."""
        names = dict.fromkeys((*row.uses, *used_s, *(account for one in others for account in one.uses)))
        return list(names)[: 2 * self._max_accounts]

    def _running_elsewhere(self, account: str, replica_id: str, others: Mapping[str, _Row], now_s: float) -> int:
        row = self._rows[replica_id]
        limits = (one.uses[account].max_running for one in (row, *others.values()) if account in one.uses)
        limit = max((one for one in limits if one is not None), default=None)
        if limit is None:
            return 0
        demands = {name: one.demand(account) for name, one in {**others, replica_id: row}.items()}
        if sum(demands.values()) <= limit:
            places = limit - sum(demand for name, demand in demands.items() if name != replica_id)
        else:
            n_held = sum(one.held(account, limit) for one in others.values())
            places = max(0, min(shares(limit, demands, int(now_s / TURN_S))[replica_id], limit - n_held))
        row.places[account] = places
        return limit - places

    def check_integrity(self) -> None:
        """Raise `EngineFailure` unless places are within the limits."""
        self._used.check_integrity()
        for replica_id, row in self._rows.items():
            if any(places < 0 for places in row.places.values()):
                raise EngineFailure(f"{replica_id} was given fewer places than none")

    @property
    def replica_ids(self) -> Set[str]:
        """The replicas that are known."""
        return self._rows.keys()


def shares(n_places: int, demands: Mapping[str, int], turn: int) -> dict[str, int]:
    """Places of each, as many as there are: one after the other in a circle, none more than it asks for.

    The circle begins with another one in each turn.
    """
    given = dict.fromkeys(demands, 0)
    names = sorted(name for name, demand in demands.items() if demand)
    while n_places > 0 and names:
        for name in _from(names, turn)[:n_places]:
            given[name] += 1
        n_places -= min(n_places, len(names))
        names = [name for name in names if given[name] < demands[name]]
    return given


def _from(names: list[str], turn: int) -> list[str]:
    start = turn % len(names)
    return names[start:] + names[:start]
