"""Shares of the accounts in what was served lately, beside their fair shares."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from ggufd.api.live.history import SECONDS
from ggufd.keys.ring import Key, Limits


class Share(NamedTuple):
    """What an account was served, in generated tokens; its share of all, and what its weight says its share is."""

    served: float
    share: float
    fair_share: float


class ServedLately:
    """What each account was served in the time of the history, from totals that the engine tells."""

    def __init__(self) -> None:
        self._totals: dict[str, float] = {}
        self._parts: deque[tuple[float, dict[str, float]]] = deque(maxlen=SECONDS)

    def add(self, now_s: float, totals: Sequence[tuple[str, float]]) -> None:
        """Take up totals; those of an engine that was started again begin at 0."""
        part = {}
        for account, total in totals:
            before = self._totals.get(account, 0.0)
            if total != before:
                part[account] = total - before if total > before else total
        self._totals = dict(totals)
        if part:
            self._parts.append((now_s, part))

    def restart(self) -> None:
        """Another engine is served, whose totals begin at 0."""
        self._totals = {}

    def lately(self, now_s: float) -> dict[str, float]:
        """Sums by account."""
        sums: dict[str, float] = {}
        for at_s, part in self._parts:
            if now_s - at_s <= SECONDS:
                for account, cost in part.items():
                    sums[account] = sums.get(account, 0.0) + cost
        return sums


def shares_of(served: Mapping[str, float], active: Collection[str], weights: Mapping[str, float]) -> dict[str, Share]:
    """Shares of all accounts that were served or are `active`; a weight that is not told is 1."""
    accounts = {*active, *(account for account, cost in served.items() if cost > 0)}
    total = sum(served.values())
    total_weight = sum(weights.get(account, 1.0) for account in accounts)
    return {
        account: Share(
            served.get(account, 0.0),
            served.get(account, 0.0) / total if total else 0.0,
            weights.get(account, 1.0) / total_weight,
        )
        for account in accounts
    }


def limits_json(limits: Limits) -> dict[str, int | None]:
    """Limits of an account; None is none."""
    return {
        "max_running": limits.max_running,
        "max_waiting": limits.max_waiting,
        "tokens_per_minute": limits.tokens_per_minute,
    }


def weights_of(keys: Collection[Key]) -> dict[str, float]:
    """Weights by the names of the keys, which are their accounts."""
    return {key.name: key.limits.weight for key in keys}
