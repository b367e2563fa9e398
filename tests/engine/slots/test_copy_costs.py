"""What copies cost: a guess before the first, measured after it."""

from __future__ import annotations

import pytest

from ggufd.engine.slots.copy_costs import CopyCosts
from tests.support.costs import FixedCosts


def test_before_the_first_copy_a_share_of_the_prefill_is_guessed() -> None:
    costs = CopyCosts(FixedCosts(0.1, 0.01))
    assert costs.prefill_s(100) == pytest.approx(1.0)
    assert costs.copy_s(100) == pytest.approx(0.05)
    assert costs.measured_copy_s(100) == 0.0


def test_copies_move_the_estimate_towards_their_own_rate() -> None:
    costs = CopyCosts(copy_bytes_per_s=1000.0)
    for _ in range(60):
        costs.note_copy(4000, 100, seconds=2.0)
    assert costs.copy_s(100) == costs.measured_copy_s(100) == pytest.approx(2.0, rel=0.01)
    assert costs.copy_s(50) == pytest.approx(1.0, rel=0.01)


def test_one_odd_copy_does_not_turn_the_estimate_over() -> None:
    costs = CopyCosts(copy_bytes_per_s=1000.0, bytes_per_token=10.0)
    costs.note_copy(1000, 100, seconds=100.0)
    assert 1.0 < costs.copy_s(100) < 1.3


def test_a_copy_of_nothing_that_took_no_time_breaks_nothing() -> None:
    costs = CopyCosts()
    costs.note_copy(12, 0, seconds=0.0)
    assert costs.copy_s(10) > 0


def test_a_save_is_unknown_until_one_was_measured() -> None:
    costs = CopyCosts()
    assert costs.save_s(100) is None
    costs.note_save(50, seconds=1.0)
    assert costs.save_s(100) == pytest.approx(2.0)
