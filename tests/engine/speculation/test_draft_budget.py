"""The budget for rejected draft tokens: a hundredth of all steps, and what accepted tokens saved."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.speculation.draft_budget import SHARE, DraftBudget


def took(n: int) -> float:
    """Steps without drafts that a step with `n` draft tokens takes as long as: each is a fifth of the first row."""
    return 1 + 0.2 * n


def test_a_first_draft_is_paid_for_and_one_of_too_many_rows_is_not() -> None:
    budget = DraftBudget()
    assert budget.allows(took(3))
    assert not budget.allows(took(31))


def test_rejected_drafts_end_until_steps_without_them_have_earned_another() -> None:
    budget = DraftBudget()
    n_made = 0
    while budget.allows(took(3)):
        budget.settle(took(3), 1.0, 1.0)
        n_made += 1
    assert n_made == 3
    n_steps = 0
    while not budget.allows(took(3)):
        budget.earn()
        n_steps += 1
    assert n_steps == pytest.approx((3 * 0.2 - (2 - 3 * 3 * 0.2)) / SHARE, abs=1)


def test_accepted_drafts_earn_longer_ones() -> None:
    budget = DraftBudget()
    for _ in range(3):
        budget.settle(took(3), took(3), 4.0)
    assert budget.allows(took(31))


@given(st.lists(st.tuples(st.integers(0, 63), st.floats(0, 1)), max_size=300))
def test_drafts_never_cost_more_than_their_share_and_what_they_saved(history: list[tuple[int, float]]) -> None:
    """All steps together take at most a hundredth more than without drafts, and the first two steps' worth."""
    budget = DraftBudget()
    n_took = n_without = 0.0
    for n, luck in history:
        budget.earn()
        n_drafted = n if n and budget.allows(took(n)) else 0
        n_accepted = int(luck * n_drafted)
        n_took += took(n_drafted)
        n_without += 1 + n_accepted
        if n_drafted:
            budget.settle(took(n_drafted), took(n_accepted), 1.0 + n_accepted)
    assert n_took <= (n_without + len(history) * SHARE + 2) * (1 + 1e-9)
