"""The number of compute threads: tried, measured, kept, and tried again."""

from __future__ import annotations

from ggufd.engine.scheduling.threads import ThreadTuner
from tests.support.fakes.fake_llama import make_engine, make_request


def run(tuner: ThreadTuner, costs: dict[int, float], n_steps: int, n_rows: int = 1) -> list[int]:
    chosen = []
    for _ in range(n_steps):
        n = tuner.choose(n_rows, depth=100, is_fixed=False)
        assert n is not None
        chosen.append(n)
        tuner.record(costs[n])
    return chosen


def test_every_number_is_tried_and_the_fastest_used() -> None:
    chosen = run(ThreadTuner(8), {8: 0.010, 7: 0.008, 4: 0.012}, 200)
    assert set(chosen) == {8, 7, 4}
    assert set(chosen[36:]) == {7}


def test_what_is_far_too_slow_costs_few_steps() -> None:
    chosen = run(ThreadTuner(2), {2: 0.005, 1: 0.010}, 4000)
    assert chosen[:8] == [2, 2, 2, 2, 1, 1, 1, 1]
    # Tried at 8, 8 + 500, 16 + 500 + 1,000 and so on steps.
    assert chosen.count(1) == 4 * 4


def test_a_number_that_may_yet_win_is_tried_on() -> None:
    chosen = run(ThreadTuner(2), {2: 0.005, 1: 0.006}, 100)
    assert chosen.count(1) == 12


def test_steps_that_could_not_be_timed_drop_no_number() -> None:
    tuner = ThreadTuner(2)
    chosen = [tuner.choose(1, depth=100, is_fixed=False) for _ in range(24)]
    assert chosen.count(1) == 12
    assert tuner.choose(1, depth=100, is_fixed=False) == 2


def test_a_slow_moment_during_the_trial_does_not_decide() -> None:
    tuner = ThreadTuner(2)
    for step in range(24):
        n = tuner.choose(1, depth=100, is_fixed=False)
        tuner.record(1.0 if step in (3, 9) else {2: 0.005, 1: 0.008}[n or 0])
    assert tuner.choose(1, depth=100, is_fixed=False) == 2


def test_what_was_slow_is_tried_again_later() -> None:
    tuner = ThreadTuner(2)
    run(tuner, {2: 0.005, 1: 0.008}, 20_000)
    later = run(tuner, {2: 0.02, 1: 0.008}, 4100)
    assert later[-1] == 1
    assert run(tuner, {2: 0.005, 1: 0.008}, 4100)[-1] == 2


def test_rows_are_told_apart() -> None:
    tuner = ThreadTuner(2)
    assert run(tuner, {2: 0.008, 1: 0.005}, 100, n_rows=1)[-1] == 1
    assert run(tuner, {2: 0.010, 1: 0.018}, 100, n_rows=16)[-1] == 2


def test_depths_are_told_apart() -> None:
    tuner = ThreadTuner(2)
    run(tuner, {2: 0.008, 1: 0.005}, 100)
    assert tuner.choose(1, depth=200, is_fixed=False) == 1
    assert tuner.choose(1, depth=4000, is_fixed=False) == 2


def test_prefill_and_a_single_thread_are_left_alone() -> None:
    assert ThreadTuner(4).choose(3, depth=100, is_fixed=True) is None
    assert ThreadTuner(1).choose(3, depth=100, is_fixed=False) is None


def test_the_engine_tries_threads_while_it_decodes() -> None:
    rig = make_engine(n_threads=2)
    seen = set()
    rig.decoder.before_decode = lambda: seen.add(rig.decoder.threads)
    rig.add(make_request(1, b"Hello there", max_tokens=30, ignore_eos=True))
    rig.run()
    assert seen == {None, 1, 2}
