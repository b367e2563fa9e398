"""Shapes of steps: passes as llama.cpp makes them, rows, and the tokens before them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.costs.step_shape import TILE, SlotRows, StepShape, shape_of

N_UBATCH = 512


def n_passes(*rows: tuple[int, int], n_ubatch: int = N_UBATCH) -> float:
    """Passes of a batch with so many rows of each slot."""
    return shape_of([SlotRows(slot, n, 0) for slot, n in rows], n_ubatch).n_passes


def test_nothing_is_no_pass() -> None:
    assert shape_of([], N_UBATCH) == StepShape()
    assert n_passes((0, 0)) == 0


def test_neighbours_with_as_many_rows_share_a_pass() -> None:
    assert n_passes((0, 1), (1, 1), (2, 1), (3, 1)) == 1
    assert n_passes((5, 4), (6, 4)) == 1


def test_a_hole_between_slots_is_a_pass() -> None:
    assert n_passes((0, 1), (2, 1)) == 2
    assert n_passes((0, 1), (1, 1), (8, 1), (9, 1), (12, 1)) == 3


def test_what_one_slot_has_beyond_its_neighbours_is_a_pass() -> None:
    assert n_passes((0, 1), (1, 1), (2, 100)) == 2
    assert n_passes((0, 4), (1, 1), (2, 1)) == 2
    # The rest of the outer two are no neighbours any more.
    assert n_passes((0, 4), (1, 1), (2, 4)) == 3


def test_a_pass_has_no_more_rows_than_a_ubatch() -> None:
    assert n_passes((0, 512)) == 1
    assert n_passes((0, 513)) == 2
    assert n_passes((0, 40), (1, 40), n_ubatch=64) == 2


def test_slots_may_be_given_in_any_order() -> None:
    assert n_passes((2, 1), (0, 1), (1, 1)) == 1


@pytest.mark.parametrize("n_rows", [1, TILE - 1, TILE, 200])
def test_each_row_attends_to_what_is_before_it_and_itself(n_rows: int) -> None:
    shape = shape_of([SlotRows(0, n_rows, 1000)], N_UBATCH)
    attended = sum(range(1001, 1001 + n_rows))
    is_tiled = n_rows >= TILE
    assert (shape.n_attended_tiled if is_tiled else shape.n_attended) == attended
    assert (shape.n_attended if is_tiled else shape.n_attended_tiled) == 0


@given(
    st.dictionaries(st.integers(0, 15), st.tuples(st.integers(1, 300), st.integers(0, 3000)), max_size=16),
    st.sampled_from([16, 64, 512]),
)
def test_no_row_is_lost_and_none_is_counted_twice(rows: dict[int, tuple[int, int]], n_ubatch: int) -> None:
    shape = shape_of([SlotRows(slot, n, n_past) for slot, (n, n_past) in rows.items()], n_ubatch)
    assert shape.n_rows == sum(n for n, _ in rows.values())
    attended = sum(n * n_past + n * (n + 1) / 2 for n, n_past in rows.values())
    assert shape.n_attended + shape.n_attended_tiled == attended
    n_least = -(-shape.n_rows // n_ubatch)
    assert n_least <= shape.n_passes <= shape.n_rows
