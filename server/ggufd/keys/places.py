"""Places of a full queue, shared by accounts: nobody keeps others out by asking for much."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from ggufd.keys.principal import Principal

FULL = "the queue is full"
DISPLACED = "the queue is full, and its places are shared, of which you had most; somebody else has this one now"
"""Beginnings of refusals: of a request that finds no place, and of one whose place was taken."""


class Waiting(Protocol):
    """Whatever waits for somebody."""

    @property
    def principal(self) -> Principal: ...


WaitingT = TypeVar("WaitingT", bound=Waiting)


def displaced_by(newcomer: Principal, waiting: Iterable[WaitingT]) -> WaitingT | None:
    """Whose place in a full queue the newcomer takes, of those `waiting` in the order of arrival; None is nobody's.

    It is the newest of the account that has most by its weight, and has no less than the newcomer's afterwards.
    """
    by_account: dict[str, list[WaitingT]] = defaultdict(list)
    for one in waiting:
        by_account[one.principal.account].append(one)
    n_own = (len(by_account.pop(newcomer.account, ())) + 1) / newcomer.limits.weight
    most = max(by_account.values(), key=_n_without_newest, default=None)
    return most[-1] if most is not None and _n_without_newest(most) >= n_own else None


def _n_without_newest(waiting: Sequence[Waiting]) -> float:
    """What waits of one account when its newest is gone, by its weight."""
    return (len(waiting) - 1) / waiting[-1].principal.limits.weight
