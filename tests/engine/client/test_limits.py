"""What one account may take: tokens a minute, and requests that wait."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.client.limits import TokenBuckets, check_rate, check_waiting
from ggufd.errors import TooManyRequests
from ggufd.keys.ring import Limits

SIXTY = Limits(tokens_per_minute=60)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_minutes_tokens_may_be_taken_at_once_and_then_one_waits() -> None:
    buckets = TokenBuckets(clock := Clock())
    buckets.charge("a", SIXTY, 60)
    check_rate(buckets, "a", SIXTY)
    buckets.charge("a", SIXTY, 10)
    with pytest.raises(TooManyRequests, match=r"60 tokens a minute .* in 10 s") as refusal:
        check_rate(buckets, "a", SIXTY)
    assert refusal.value.retry_after_s == pytest.approx(10)
    check_rate(buckets, "b", SIXTY)
    clock.now_s += 0.7
    with pytest.raises(TooManyRequests, match="in 10 s"):
        # Rounded up, as Retry-After is: nine would be too early.
        check_rate(buckets, "a", SIXTY)
    clock.now_s += 9.3
    check_rate(buckets, "a", SIXTY)


def test_without_a_limit_nothing_is_counted() -> None:
    buckets = TokenBuckets(Clock())
    buckets.charge("a", Limits(), 10**9)
    assert len(buckets) == 0
    check_rate(buckets, "a", Limits())


def test_full_buckets_are_dropped() -> None:
    buckets = TokenBuckets(clock := Clock())
    for i in range(2000):
        buckets.charge(f"address {i}", SIXTY, 1)
        clock.now_s += 0.5
    assert len(buckets) <= 256


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 200)), min_size=1, max_size=40))
def test_over_any_time_no_more_is_taken_than_two_limits_and_one_request_allow(steps: list[tuple[float, int]]) -> None:
    """A bucket that was full gives a minute's worth at once; the last request may take more than there is."""
    buckets = TokenBuckets(clock := Clock())
    taken: list[tuple[float, int]] = []
    for pause_s, n_tokens in steps:
        clock.now_s += pause_s
        if buckets.wait_s("a", SIXTY) == 0:
            buckets.charge("a", SIXTY, n_tokens)
            taken.append((clock.now_s, n_tokens))
    for i, (start_s, _) in enumerate(taken):
        for j in range(i, len(taken)):
            total = sum(n for _, n in taken[i:j])
            assert total <= 60 + (taken[j][0] - start_s) + 1e-6
    assert taken, "the first is always taken"


@pytest.mark.parametrize(("n_waiting", "n_free", "is_refused"), [(0, 0, True), (0, 1, False), (1, 1, True)])
def test_free_slots_are_places_too(n_waiting: int, n_free: int, is_refused: bool) -> None:
    check: Callable[[], None] = lambda: check_waiting(Limits(max_waiting=0), n_waiting, n_free, 7.0)  # noqa: E731
    if not is_refused:
        check()
        return
    with pytest.raises(TooManyRequests, match="0 requests waiting, and have") as refusal:
        check()
    assert (refusal.value.status, refusal.value.type, refusal.value.retry_after_s) == (429, "rate_limit_error", 7.0)
