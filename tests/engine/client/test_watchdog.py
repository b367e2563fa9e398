"""The watchdog's judgement: an engine that hangs is given up, one that is slow is not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.client.watchdog import Verdict, Watchdog

BEAT_S = 0.5


def looks(dog: Watchdog, n: int, *, has_work: bool = True, elapsed_s: float = BEAT_S) -> list[Verdict]:
    return [dog.look(elapsed_s, has_work=has_work) for _ in range(n)]


def test_a_silent_engine_with_work_is_asked_once_and_given_up_after_the_limit() -> None:
    dog = Watchdog(60, 0)
    assert dog.beat_s == BEAT_S
    assert looks(dog, 121) == [Verdict.ASK] + 120 * [Verdict.WAIT]
    assert looks(dog, 1) == [Verdict.GIVE_UP]


def test_an_idle_engine_is_left_alone() -> None:
    assert set(looks(Watchdog(1, 0), 1000, has_work=False)) == {Verdict.WAIT}


def test_an_engine_that_speaks_is_not_even_asked() -> None:
    dog = Watchdog(1, 0)
    for _ in range(100):
        dog.heard()
        assert looks(dog, 1, elapsed_s=dog.beat_s) == [Verdict.WAIT]


def test_an_answer_starts_the_time_again() -> None:
    dog = Watchdog(60, 0)
    looks(dog, 100)
    dog.heard()
    assert Verdict.GIVE_UP not in looks(dog, 100)


def test_a_model_may_take_as_long_as_a_slow_disk_takes_to_read_it() -> None:
    dog = Watchdog(60, 40_000_000_000)
    assert dog.limit_s == 800
    assert Verdict.GIVE_UP not in looks(dog, 1600)


def test_a_machine_that_was_slow_may_be_slow_again() -> None:
    dog = Watchdog(60, 0)
    looks(dog, 101)
    dog.heard()
    assert dog.limit_s == 250


def test_zero_never_gives_up() -> None:
    assert Verdict.GIVE_UP not in looks(Watchdog(0, 0), 100_000)


@given(st.lists(st.floats(0, 1e6), max_size=50))
def test_time_in_which_nobody_looked_is_not_the_engines(pauses: list[float]) -> None:
    """The machine slept, or this process was stopped: that many looks are less than the limit, whatever they took."""
    dog = Watchdog(60, 0)
    assert Verdict.GIVE_UP not in [dog.look(pause, has_work=True) for pause in pauses]
