"""The history's rows, percentiles of histograms, and shares of what was served lately."""

from __future__ import annotations

import pytest

from ggufd.api.http.record import RequestRecord
from ggufd.api.live.history import LiveHistory, percentile
from ggufd.api.live.recent import Recent
from ggufd.api.live.shares import ServedLately, shares_of
from ggufd.engine.messages.reports import LiveState, Spread, Stats


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ((10, 0, 0), 0.5, 0.05),
        ((5, 5, 0), 0.5, 0.1),
        ((5, 5, 0), 0.95, 0.19),
        ((0, 4, 0), 0.25, 0.125),
        # Of what is beyond the last bound only that is known.
        ((1, 0, 99), 0.95, 0.2),
        ((0, 0, 0), 0.5, None),
    ],
)
def test_percentiles_are_linear_in_a_bucket(counts: tuple[int, ...], share: float, expected: float | None) -> None:
    found = percentile(Spread((0.1, 0.2), counts), share)
    assert found == (None if expected is None else pytest.approx(expected))


def test_ten_minutes_of_rows_are_kept_and_numbered() -> None:
    history = LiveHistory()
    for second in range(700):
        history.add(1000.0 + second, 1.0, None, None, (second, 0, 0))
    rows = list(history.since(0, 1699.0))
    assert len(rows) == 600
    assert (rows[0].waiting, rows[-1].waiting) == (100, 699)
    assert [row.waiting for row in history.since(698, 1699.0)] == [698, 699]
    assert not list(history.since(700, 1699.0))
    # After a pause what is older is not shown, though it is there.
    assert len(list(history.since(0, 1699.0 + 300))) == 301


def test_a_step_longer_than_a_second_counts_in_the_row_after_it() -> None:
    history = LiveHistory()
    first, second = state_of(0), state_of(60)
    history.add(1.0, 1.0, first, first, (0, 1, 0))
    history.add(2.0, 3.0, first, second, (0, 1, 0))
    history.add(3.0, 1.0, second, state_of(5), (0, 1, 0))
    assert [row.written for row in history.since(0, 3.0)] == [None, 20.0, 0.0]


def state_of(generated: int) -> LiveState:
    stats = Stats(0, 0, generated, generated, 0, generated, 0.0, 0.0, ())
    return LiveState(stats, (), ())


def test_first_tokens_count_for_half_a_minute() -> None:
    history = LiveHistory()
    for took_s in (0.1, 0.2, 0.3, 4.0):
        history.note_first_token(1000.0, took_s)
    for now_s in (1001.0, 1029.0, 1031.0):
        history.add(now_s, 1.0, None, None, (0, 0, 0))
    assert [(row.first_p50, row.first_p95) for row in history.since(0, 1031.0)] == [
        (0.3, 4.0),
        (0.3, 4.0),
        (None, None),
    ]


def test_what_was_served_lately_forgets_and_begins_again_with_the_engine() -> None:
    served = ServedLately()
    served.add(0.0, [("alice", 10.0)])
    served.add(300.0, [("alice", 25.0), ("bob", 5.0)])
    assert served.lately(300.0) == {"alice": 25.0, "bob": 5.0}
    assert served.lately(700.0) == {"alice": 15.0, "bob": 5.0}
    served.restart()
    served.add(701.0, [("alice", 30.0)])
    assert served.lately(701.0) == {"alice": 45.0, "bob": 5.0}


def test_a_fair_share_is_of_those_who_want_something() -> None:
    shares = shares_of({"alice": 30.0, "gone": 0.0}, {"bob"}, {"alice": 3.0, "carol": 9.0})
    assert shares["alice"] == (30.0, 1.0, 0.75)
    assert shares["bob"] == (0.0, 0.0, 0.25)
    assert set(shares) == {"alice", "bob"}
    assert shares_of({}, (), {}) == {}


def test_refusals_are_counted_by_account_and_probes_are_none() -> None:
    recent = Recent()
    recent.note_request(RequestRecord(key="alice", status=429, reason="rate_limit_exceeded"))
    recent.note_request(RequestRecord(address="10.0.0.1", status=503, reason="queue_full"))
    recent.note_request(RequestRecord(key="probe", status=503))
    recent.note_request(RequestRecord(key="alice", status=200, reason="stop", is_work=True))
    at_s = next(iter(recent.requests(0))).at_s
    assert recent.refusals(at_s) == {"alice": 1, "10.0.0.1": 1}
    assert not recent.refusals(at_s + 601)
    assert recent.n_refused == 2
