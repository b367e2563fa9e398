"""The queue: order, depth and deadlines."""

from __future__ import annotations

import pytest

from server.engine.queue import RequestQueue
from server.engine.sequence import Sequence
from server.errors import QueueFull
from tests.fake_llama import make_request


def sequences(request_id: int, *, n: int = 1, arrival_s: float = 0.0, wait_s: float | None = None) -> list[Sequence]:
    request = make_request(request_id, b"x", n=n, max_queue_wait_s=wait_s)
    return [Sequence.of(request, index, arrival_s) for index in range(n)]


def order(queue: RequestQueue) -> list[tuple[int, int]]:
    return [(sequence.request.request_id, sequence.index) for sequence in queue]


def test_first_come_first_served() -> None:
    queue = RequestQueue(10, 60.0)
    for request_id in (5, 3, 9):
        queue.push(sequences(request_id, n=2))
    assert order(queue) == [(5, 0), (5, 1), (3, 0), (3, 1), (9, 0), (9, 1)]


def test_who_is_taken_may_leave_while_the_order_is_read() -> None:
    queue = RequestQueue(10, 60.0)
    for request_id in range(4):
        queue.push(sequences(request_id))
    for sequence in queue:
        if sequence.request.request_id % 2 == 0:
            queue.remove(sequence)
    assert order(queue) == [(1, 0), (3, 0)]


def test_a_request_of_many_choices_counts_once() -> None:
    queue = RequestQueue(2, 60.0)
    queue.push(sequences(1, n=5))
    queue.push(sequences(2))
    assert (queue.n_requests, len(queue)) == (2, 6)
    with pytest.raises(QueueFull):
        queue.push(sequences(3))
    assert (queue.n_requests, len(queue)) == (2, 6)


def test_a_request_whose_first_choice_runs_waits_no_more() -> None:
    queue = RequestQueue(1, 60.0)
    first, *_ = request = sequences(1, n=3)
    queue.push(request)
    queue.remove(first)
    assert queue.n_requests == 0
    queue.push(sequences(2))


def test_free_slots_are_places_too() -> None:
    queue = RequestQueue(0, 60.0)
    queue.push(sequences(1), n_free=2)
    queue.push(sequences(2), n_free=2)
    with pytest.raises(QueueFull):
        queue.push(sequences(3), n_free=2)


def test_all_sequences_of_a_request_are_found() -> None:
    queue = RequestQueue(10, 60.0)
    wanted = sequences(2, n=3)
    queue.push(sequences(1))
    queue.push(wanted)
    assert queue.of_request(2) == wanted
    assert queue.of_request(7) == []


@pytest.mark.parametrize(
    ("asked_s", "now_s", "is_expired"),
    [
        (None, 60.0, False),
        (None, 60.1, True),
        (5.0, 5.0, False),
        (5.0, 5.1, True),
        (100.0, 60.1, True),
        (0.0, 0.0, False),
    ],
)
def test_who_has_waited_longer_than_it_may_is_expired(asked_s: float | None, now_s: float, is_expired: bool) -> None:
    queue = RequestQueue(10, 60.0)
    queue.push(sequences(1, wait_s=asked_s, n=2))
    assert [sequence.index for sequence in queue.expired(now_s)] == ([0] if is_expired else [])


def test_a_later_choice_never_expires() -> None:
    queue = RequestQueue(10, 60.0)
    first, *_ = request = sequences(1, n=3)
    queue.push(request)
    queue.remove(first)
    assert queue.expired(1e6) == []
