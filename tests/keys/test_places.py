"""Places of a full queue: whoever has most waiting makes room for whoever has less."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.keys.places import displaced_by
from ggufd.keys.principal import Principal
from ggufd.keys.ring import Limits


@dataclass(eq=False)
class Request:
    principal: Principal


def of(account: str) -> Principal:
    """An account by its letter; "C" has twice the weight of others."""
    return Principal(account=account, limits=Limits(weight=2.0 if account == "C" else 1.0))


def requests(accounts: Iterable[str]) -> list[Request]:
    return [Request(of(account)) for account in accounts]


@pytest.mark.parametrize(
    ("waiting", "newcomer", "displaced"),
    [
        ("aaaa", "b", 3),
        ("aabbb", "c", 4),
        ("aabb", "c", 1),
        ("aaba", "b", 3),
        ("baaa", "b", 3),
        ("abab", "a", None),
        ("aab", "b", None),
        ("aaaa", "a", None),
        ("abcd", "e", None),
        ("", "a", None),
        ("CCCb", "b", None),
        ("CCCCCb", "b", 4),
        ("aaaC", "C", 2),
    ],
)
def test_whoever_has_most_waiting_makes_room(waiting: str, newcomer: str, displaced: int | None) -> None:
    queue = requests(waiting)
    assert displaced_by(of(newcomer), queue) is (None if displaced is None else queue[displaced])


@given(st.lists(st.sampled_from("abbbcccccccccc"), max_size=60), st.integers(1, 8))
def test_whoever_comes_has_an_equal_share_of_the_places(arrivals: list[str], n_places: int) -> None:
    """Nothing leaves but what is displaced: at the end the places are shared by those who wanted them."""
    queue: list[Request] = []
    for arrival in requests(arrivals):
        if len(queue) == n_places:
            displaced = displaced_by(arrival.principal, queue)
            if displaced is None:
                continue
            queue.remove(displaced)
        queue.append(arrival)
    held = [one.principal.account for one in queue]
    for account in set(arrivals):
        assert held.count(account) >= min(arrivals.count(account), n_places // len(set(arrivals)))
