"""Times of steps and of their batches."""

from __future__ import annotations

from ggufd.engine.telemetry.counters import Counters


def test_the_time_of_a_step_is_that_of_all_its_batches() -> None:
    counters = Counters()
    counters.begin_step()
    for start_s, seconds in ((10.0, 0.5), (10.625, 0.25)):
        counters.begin(start_s)
        counters.end(start_s + seconds, seconds, n_rows=4, n_sequences=2)
    assert (counters.step_s, counters.decode_s, counters.step_gap_s) == (0.75, 0.25, 0.125)
    assert (counters.steps, counters.computed_tokens, counters.busy_slots) == (2, 8, 4)
    counters.begin_step()
    counters.begin(11.0)
    counters.end(11.5, 0.5, n_rows=1, n_sequences=1)
    assert (counters.step_s, counters.decode_s, counters.step_gap_s) == (0.5, 0.5, 0.125)
