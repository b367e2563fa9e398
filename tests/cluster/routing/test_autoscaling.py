"""The autoscaling policy: what is needed, its pace, and simulated loads under which it must not flap."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufd.cluster.replicas import ReplicaLoad
from ggufd.cluster.routing.autoscaling import ScalingRules, ScalingState, needed_replicas, scaled

RULES = ScalingRules(min_replicas=1, max_replicas=20)


def loads(n: int, **load: float) -> list[ReplicaLoad]:
    return [ReplicaLoad(**({"n_slots": 4} | load)) for _ in range(n)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("load", "n_needed"),
    [
        (loads(2), 0),
        (loads(2, running=2), 2),
        (loads(2, running=4, waiting=4), 5),
        (loads(2, running=1, wait_s=3.0), 3),
        (loads(2, running=1, wait_s=500.0), 4),
        (loads(2, running=1, kv_used=0.99), 3),
        (loads(2, running=1, kv_used=0.8), 1),
        ([*loads(1, running=4), *loads(3, running=4, is_draining=True)], 2),
        ([], 0),
    ],
)
def test_what_is_needed_goes_by_slots_first_token_and_cache(load: Sequence[ReplicaLoad], n_needed: int) -> None:
    assert needed_replicas(load, RULES, RULES.use) == n_needed


def after(seconds: float, load: Sequence[ReplicaLoad], n: int, rules: ScalingRules = RULES) -> int:
    state = ScalingState(n)
    for now_s in range(int(seconds) + 1):
        state = scaled(state, load, rules, float(now_s))
    return state.n_replicas


def test_more_are_wanted_after_a_while_and_not_again_while_they_start() -> None:
    busy = loads(2, running=4, waiting=4)
    assert [after(seconds, busy, 2) for seconds in (0, 4, 5, 60)] == [2, 2, 4, 5]


def test_a_short_peak_changes_nothing() -> None:
    state = ScalingState(2)
    for now_s in range(60):
        peak = now_s % 6 < 4
        state = scaled(state, loads(2, running=4 if peak else 2, waiting=8 if peak else 0), RULES, float(now_s))
    assert state.n_replicas == 2


def test_fewer_are_wanted_much_later_and_a_fifth_at_a_time() -> None:
    assert [after(seconds, loads(20), 20) for seconds in (299, 300, 600, 601)] == [20, 16, 16, 13]


def test_there_is_room_to_spare_before_there_are_fewer() -> None:
    # Two of three would have 2/3 of their slots taken: more than half.
    assert after(2000, loads(3, running=2), 3) == 3
    assert after(2000, loads(3, running=1), 3) == 2


def test_the_number_stays_while_nobody_tells_and_within_the_bounds() -> None:
    assert after(2000, [], 7) == 7
    assert after(0, loads(1), 1, ScalingRules(min_replicas=3, max_replicas=5)) == 3
    assert after(100, loads(5, running=4, waiting=400), 5, ScalingRules(min_replicas=3, max_replicas=5)) == 5


@pytest.mark.parametrize("rules", [{"min_replicas": 0}, {"min_replicas": 3, "max_replicas": 2}, {"idle_use": 0.9}])
def test_rules_that_contradict_each_other_are_refused(rules: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ScalingRules(**rules)  # type: ignore[arg-type]


START_S, SERVICE_S, N_SLOTS = 20, 8.0, 4


def simulated(rate: Callable[[int], float], n_seconds: int, seed: int = 1) -> list[tuple[int, int]]:
    """A cluster second by second: wanted replicas and waiting requests. A new replica serves after `START_S`."""
    draw = random.Random(seed)
    state, started, n_requests = ScalingState(2), [-START_S, -START_S], 0
    seen = []
    for now_s in range(n_seconds):
        n_requests += sum(draw.random() < rate(now_s) / 10 for _ in range(10))
        n = sum(now_s - start_s >= START_S for start_s in started)
        running = min(n_requests, n * N_SLOTS)
        waiting = n_requests - running
        wait_s = waiting * SERVICE_S / (n * N_SLOTS)
        told = [
            ReplicaLoad(math.ceil(running / n), math.ceil(waiting / n), N_SLOTS, wait_s, 0.0, running / n / N_SLOTS)
            for _ in range(n)
        ]
        state = scaled(state, told, RULES, float(now_s))
        started += [now_s] * (state.n_replicas - len(started))
        del started[state.n_replicas :]
        n_requests -= sum(draw.random() < 1 / SERVICE_S for _ in range(running))
        seen.append((state.n_replicas, waiting))
    return seen


def turns(wanted: Sequence[int]) -> int:
    """How often the number went one way after it had gone the other."""
    steps = [after - before for before, after in pairwise(wanted) if after != before]
    return sum(one * other < 0 for one, other in pairwise(steps))


def test_a_load_that_grows_is_followed_and_one_that_ends_is_given_up() -> None:
    seen = simulated(lambda now_s: 5.0 if 100 <= now_s < 1000 else 0.3, 4000)
    wanted = [n for n, _ in seen]
    # 5 requests a second of 8 s are 40 slots, with room for a fifth more: 12 or 13 replicas.
    assert 11 <= max(wanted[100:1000]) <= 20
    assert max(waiting for _, waiting in seen[400:1000]) < 20, "served within the target once they are there"
    assert wanted[-1] <= 6, "a fifth at a time, every 300 s"
    assert turns(wanted) <= 2


@pytest.mark.parametrize("rate", [0.5, 1.5, 3.0])
def test_a_load_that_stays_ends_in_a_number_that_stays(rate: float) -> None:
    wanted = [n for n, _ in simulated(lambda _: rate, 3000)]
    assert turns(wanted) <= 3000 // 300
    assert max(wanted[1500:]) - min(wanted[1500:]) <= 2


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.floats(0, 6), min_size=1, max_size=8))
def test_it_cannot_flap_whatever_comes(seed: int, rates: list[float]) -> None:
    n_seconds = 900
    wanted = [n for n, _ in simulated(lambda now_s: rates[now_s // 7 % len(rates)], n_seconds, seed)]
    # Down only `shrink_after_s` after the last change, so up and down again takes that long at least.
    assert turns(wanted) <= 2 * (n_seconds / RULES.shrink_after_s)
    assert all(RULES.min_replicas <= n <= RULES.max_replicas for n in wanted)
