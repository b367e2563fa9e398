"""The budget for rejected draft tokens: a hundredth of all steps, and what accepted tokens saved."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.speculation.draft_budget import SHARE, DraftBudget


def steps(n_rows: int) -> float:
    """Seconds of steps whose rows take a fifth of the first one each."""
    return 0.01 * (1 + 0.2 * (n_rows - 1))


def test_a_first_draft_is_paid_for_and_one_of_too_many_rows_is_not() -> None:
    budget = DraftBudget()
    assert budget.allows(3, steps)
    assert not budget.allows(31, steps)


def test_rejected_drafts_end_until_steps_without_them_have_earned_another() -> None:
    budget = DraftBudget()
    n_made = 0
    while budget.allows(3, steps):
        budget.settle(3, 0, steps)
        n_made += 1
    assert n_made == 3
    n_steps = 0
    while not budget.allows(3, steps):
        budget.earn()
        n_steps += 1
    assert n_steps == pytest.approx((3 * 0.2 - (2 - 3 * 3 * 0.2)) / SHARE, abs=1)


def test_accepted_drafts_earn_longer_ones() -> None:
    budget = DraftBudget()
    for _ in range(3):
        budget.settle(3, 3, steps)
    assert budget.allows(31, steps)


@given(st.lists(st.tuples(st.integers(0, 63), st.floats(0, 1)), max_size=300))
def test_drafts_never_cost_more_than_their_share_and_what_they_saved(history: list[tuple[int, float]]) -> None:
    """All steps together take at most a hundredth more than without drafts, and the first two steps' worth."""
    budget = DraftBudget()
    took_s = without_s = 0.0
    for n, luck in history:
        budget.earn()
        n_drafted = n if n and budget.allows(n, steps) else 0
        n_accepted = int(luck * n_drafted)
        took_s += steps(1 + n_drafted)
        without_s += (1 + n_accepted) * steps(1)
        if n_drafted:
            budget.settle(n_drafted, n_accepted, steps)
    assert took_s <= (without_s + len(history) * SHARE * steps(1) + 2 * steps(1)) * (1 + 1e-9)
