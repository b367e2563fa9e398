"""A backlog counts once it has lasted: a burst does not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.scheduling.backlog import FEW, Backlog


def test_it_counts_when_it_has_lasted_six_seconds_and_may_be_gone_for_a_moment() -> None:
    backlog = Backlog()
    times = ((0.3, 50.0), (0.5, 55.9), (0.5, 56.0), (0.2, 57.0), (0.5, 58.0), (0.4, 58.9), (0.4, 59.0))
    assert [backlog.lasting(waiting, now_s) for waiting, now_s in times] == [0.0, 0.0, 0.5, 0.0, 0.5, 0.4, 0.4]
    assert [backlog.lasting(waiting, now_s) for waiting, now_s in ((0.0, 60.0), (0.5, 70.0), (0.5, 75.9))] == [0.0] * 3


@given(st.lists(st.tuples(st.floats(0, 8), st.floats(0, 1)), min_size=1, max_size=60))
def test_a_server_with_a_backlog_half_of_the_time_or_less_has_none_that_counts(
    looks: list[tuple[float, float]],
) -> None:
    """Moments with and without one are equally long, in turns."""
    backlog, now_s = Backlog(), 0.0
    for seconds, waiting in looks:
        assert backlog.lasting(FEW + waiting, now_s) == 0.0
        now_s += min(seconds, 5.9)
        assert backlog.lasting(FEW + waiting, now_s) == 0.0
        backlog.lasting(0.0, now_s)
        now_s += min(seconds, 5.9)
        backlog.lasting(0.0, now_s)


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 1)), max_size=60))
def test_what_counts_is_what_waits(looks: list[tuple[float, float]]) -> None:
    backlog, now_s = Backlog(), 0.0
    for pause_s, waiting in looks:
        now_s += pause_s
        lasting = backlog.lasting(waiting, now_s)
        assert lasting in (0.0, waiting)
        assert lasting == 0.0 or (waiting > FEW and now_s >= 6.0)
