"""A backlog counts once it has lasted: a burst does not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.scheduling.backlog import FEW, Backlog


def test_it_counts_when_it_has_lasted_six_seconds_and_may_be_small_for_a_while() -> None:
    backlog = Backlog()
    times = ((0.3, 50.0), (0.5, 55.9), (0.5, 56.0), (0.2, 57.0), (0.1, 90.0), (0.4, 95.0), (0.5, 95.1))
    assert [backlog.lasting(waiting, now_s) for waiting, now_s in times] == [0.0, 0.0, 0.5, 0.0, 0.0, 0.4, 0.5]


def test_it_is_over_soon_after_nobody_waits() -> None:
    backlog = Backlog()
    times = ((0.3, 0.0), (0.3, 8.0), (0.0, 8.0), (0.3, 8.4), (0.0, 8.4), (0.3, 9.0), (0.3, 11.0))
    assert [backlog.lasting(waiting, now_s) for waiting, now_s in times] == [0.0, 0.3, 0.0, 0.3, 0.0, 0.0, 0.3]


@given(st.lists(st.tuples(st.floats(0, 8), st.floats(0.01, 1)), min_size=1, max_size=60))
def test_a_server_where_nobody_waits_a_fifth_of_the_time_has_bursts(looks: list[tuple[float, float]]) -> None:
    """Bursts below six seconds, each with a quarter as long without."""
    backlog, now_s = Backlog(), 0.0
    for seconds, waiting in looks:
        assert backlog.lasting(FEW + waiting, now_s) == 0.0
        now_s += min(seconds, 5.9)
        assert backlog.lasting(FEW + waiting, now_s) == 0.0
        backlog.lasting(0.0, now_s)
        now_s += 0.25 * min(seconds, 5.9) + 0.001


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 1)), max_size=60))
def test_what_counts_is_what_waits(looks: list[tuple[float, float]]) -> None:
    backlog, now_s = Backlog(), 0.0
    for pause_s, waiting in looks:
        now_s += pause_s
        lasting = backlog.lasting(waiting, now_s)
        assert lasting in (0.0, waiting)
        assert lasting == 0.0 or (waiting > FEW and now_s >= 6.0)
