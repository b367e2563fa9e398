"""Limits at the submission: the queue's length, tokens a minute and waiting requests of one account."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.client.limits import SubmissionLimits, TokenBuckets
from ggufd.engine.client.open_requests import OpenRequests
from ggufd.engine.client.stream import RequestStream
from ggufd.engine.messages.events import Admitted, Output, Progress
from ggufd.engine.messages.reports import LimitUse, UseElsewhere
from ggufd.engine.messages.requests import EngineRequest
from ggufd.errors import QueueFull, TooManyRequests
from ggufd.keys.principal import BACKGROUND, Principal
from ggufd.keys.ring import Limits

SIXTY = Limits(tokens_per_minute=60)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def check(buckets: TokenBuckets, account: str) -> None:
    """Raises what a request of the account is refused with."""
    request = EngineRequest(1, (1,), principal=Principal(account=account, limits=SIXTY))
    SubmissionLimits(OpenRequests(), 1, buckets).check(request, n_slots=1)


def test_a_minutes_tokens_may_be_taken_at_once_and_then_one_waits() -> None:
    buckets = TokenBuckets(clock := Clock())
    buckets.charge("a", SIXTY, 60)
    check(buckets, "a")
    buckets.charge("a", SIXTY, 10)
    with pytest.raises(TooManyRequests, match=r"60 tokens per minute; try again in 10 s") as refusal:
        check(buckets, "a")
    assert refusal.value.retry_after_s == pytest.approx(10)
    check(buckets, "b")
    clock.now_s += 0.7
    with pytest.raises(TooManyRequests, match="in 10 s"):
        # Rounded up, as Retry-After is: nine would be too early.
        check(buckets, "a")
    clock.now_s += 9.3
    check(buckets, "a")


def test_without_a_limit_nothing_is_counted() -> None:
    buckets = TokenBuckets(Clock())
    buckets.charge("a", Limits(), 10**9)
    assert len(buckets) == 0
    assert buckets.wait_s("a", Limits()) == 0


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


def submission(
    *,
    n_waiting: int = 0,
    n_running: int = 0,
    n_background: int = 0,
    max_queue: int = 8,
    buckets: TokenBuckets | None = None,
) -> SubmissionLimits:
    """Limits over requests of account "a", and of background work; of those that run each holds a slot."""
    requests = OpenRequests()
    for i in range(n_background):
        background = EngineRequest(100 + i, (1, 2, 3), principal=Principal(account=BACKGROUND))
        requests.add(RequestStream(background, lambda stream: None, lambda stream, index: None))
    for i in range(n_waiting + n_running):
        stream = RequestStream(request_of(i), lambda stream: None, lambda stream, index: None)
        requests.add(stream)
        if i < n_running:
            stream.put(Admitted(i, 0, 0))
    return SubmissionLimits(requests, max_queue, buckets)


def request_of(number: int = 1000, **limits: Any) -> EngineRequest:
    return EngineRequest(number, (1, 2, 3), principal=Principal(account="a", limits=Limits(**limits)))


@pytest.mark.parametrize(
    ("n_waiting", "n_running", "max_running", "is_refused"),
    [(0, 2, None, True), (0, 1, None, False), (1, 1, None, True), (0, 1, 1, True)],
)
def test_free_slots_are_places_too(n_waiting: int, n_running: int, max_running: int | None, is_refused: bool) -> None:
    limits = submission(n_waiting=n_waiting, n_running=n_running)
    request = request_of(max_waiting=0, max_running=max_running)
    if not is_refused:
        limits.check(request, n_slots=2)
        return
    with pytest.raises(TooManyRequests, match=f"0 requests waiting, and have {n_waiting}") as refusal:
        limits.check(request, n_slots=2)
    assert (refusal.value.status, refusal.value.type, refusal.value.retry_after_s) == (429, "rate_limit_error", 1.0)


def test_the_queue_is_full_for_whoever_has_most_of_it() -> None:
    limits = submission(n_waiting=3, n_running=1, max_queue=2)
    limits.check(request_of(), n_slots=3)
    assert not limits.is_full(3)
    assert limits.is_full(2)
    with pytest.raises(QueueFull, match=r"3 requests are waiting\. Try again in 2 s, or .* larger --max-queue") as full:
        limits.check(request_of(), n_slots=2)
    assert full.value.retry_after_s == 2.0


def test_in_a_full_queue_another_account_takes_the_place_of_the_newest_that_waits() -> None:
    limits = submission(n_waiting=2, n_running=1, n_background=3, max_queue=2)
    other = EngineRequest(1000, (1, 2, 3), principal=Principal(account="b"))
    displaced = limits.check(other, n_slots=1)
    assert displaced is not None
    assert (displaced.request.request_id, displaced.is_admitted) == (2, False)
    assert limits.check(other, n_slots=2) is None, "there is a free slot"


def test_background_work_leaves_the_queue_to_others() -> None:
    limits = submission(n_waiting=1, n_running=1, n_background=50, max_queue=1)
    limits.check(request_of(), n_slots=2)
    with pytest.raises(QueueFull, match="1 requests are waiting"):
        limits.check(request_of(), n_slots=1)
    limits.check(EngineRequest(1, (1, 2, 3), principal=Principal(account=BACKGROUND)), n_slots=1)


def test_events_are_charged_by_the_tokens_they_stand_for() -> None:
    limits = submission(buckets=TokenBuckets(Clock()))
    request = request_of(tokens_per_minute=60)
    limits.charge(request, Progress(1000, 0, 3, 0, 0, 0.0))
    limits.charge(request, Admitted(1000, 0, 1))
    limits.charge(request, Output(1000, 0, "text", tuple(range(60))))
    with pytest.raises(TooManyRequests, match="60 tokens per minute; try again in 2 s"):
        limits.check(request, n_slots=1)


# --- other servers of a cluster ---------------------------------------------------------------------------------------


def test_tokens_that_an_account_took_elsewhere_are_taken_here_in_the_same_words() -> None:
    limits = submission(buckets=TokenBuckets(Clock()))
    limits.charge(request_of(tokens_per_minute=60), Output(1000, 0, "text", tuple(range(40))))
    limits.count_elsewhere([UseElsewhere("a", 20.0, 0, 0), UseElsewhere("b", 90.0, 0, 0)])
    limits.check(request_of(tokens_per_minute=60), n_slots=1)
    limits.count_elsewhere([UseElsewhere("a", 2.5, 0, 0)])
    with pytest.raises(
        TooManyRequests, match="this key has used its 60 tokens per minute; try again in 3 s"
    ) as refusal:
        limits.check(request_of(tokens_per_minute=60), n_slots=1)
    assert refusal.value.retry_after_s == 2.5
    limits.check(request_of(), n_slots=1)
    (own,) = limits.use(1)
    assert own == LimitUse("a", 40.0, 0, None), "what was taken elsewhere is not told as if it were taken here"


def test_requests_that_wait_elsewhere_count_in_the_same_words() -> None:
    limits = submission(n_waiting=1, n_running=2)
    request = request_of(max_waiting=3)
    limits.check(request, n_slots=2)
    limits.count_elsewhere([UseElsewhere("a", 0.0, 2, 0), UseElsewhere("b", 0.0, 9, 9)])
    with pytest.raises(
        TooManyRequests, match="you may have 3 requests waiting, and have 3; try again in 2 s"
    ) as refusal:
        limits.check(request, n_slots=2)
    assert (refusal.value.status, refusal.value.retry_after_s) == (429, 2.0)
    limits.count_elsewhere([])
    limits.check(request, n_slots=2)


def test_a_free_slot_is_no_place_for_who_holds_its_slots_elsewhere() -> None:
    limits = submission(n_running=1)
    request = request_of(max_waiting=0, max_running=2)
    limits.check(request, n_slots=4)
    limits.count_elsewhere([UseElsewhere("a", 0.0, 0, 1)])
    with pytest.raises(TooManyRequests, match="you may have 0 requests waiting, and have 0"):
        limits.check(request, n_slots=4)
    limits.check(request_of(max_waiting=0), n_slots=4)


def test_use_is_told_of_accounts_with_limits_and_waiting_requests_only_beyond_free_slots() -> None:
    requests = OpenRequests()
    for number, account, limits in (
        (1, "a", Limits(max_running=1, max_waiting=5)),
        (2, "a", Limits(max_running=1, max_waiting=5)),
        (3, "b", Limits(max_waiting=0)),
        (4, "c", Limits(weight=2.0)),
    ):
        request = EngineRequest(number, (1,), principal=Principal(account=account, limits=limits))
        requests.add(RequestStream(request, lambda stream: None, lambda stream, index: None))
    use = SubmissionLimits(requests, 9).use(4)
    assert use == [LimitUse("a", 0.0, 1, 1), LimitUse("b", 0.0, 0, None)]


def test_accounts_that_took_tokens_are_told_boundedly() -> None:
    buckets = TokenBuckets(Clock())
    for number in range(1000):
        buckets.charge(f"address {number}", SIXTY, 1)
    assert len(buckets.used_s) <= 256
    assert "address 999" in buckets.used_s
