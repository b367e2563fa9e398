"""Tokens of prompts that join the rows of decoding sequences into one pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ggufd.engine.costs.step_shape import shape_of
from ggufd.engine.scheduling.holes import hole_fillers
from ggufd.engine.scheduling.scheduler import Scheduler, rows_of
from ggufd.engine.sequence.sequence import SequenceState
from tests.support.costs import known_costs
from tests.support.fakes.fake_llama import make_request


def sequence(slot: int, *, n_left: int = 100, n_generated: int = 0) -> SequenceState:
    """A sequence in a slot; so many of its tokens are not computed."""
    made = SequenceState.of(make_request(slot, bytes(200)), 0, 0.0)
    made.tokens.extend([1] * n_generated)
    made.slot, made.n_past, made.admit_s = slot, len(made.tokens) - n_left, float(slot)
    return made


def decoding(slot: int) -> SequenceState:
    return sequence(slot, n_left=1, n_generated=1)


def found(slots: set[int], *waiting: SequenceState) -> list[int | None]:
    return [one.slot for one in hole_fillers(slots, waiting)]


def test_slots_that_wait_between_computing_ones_join_them() -> None:
    assert found({0, 2, 5}, *(sequence(slot) for slot in (1, 3, 4, 6))) == [1, 3, 4]


def test_a_hole_is_filled_whole_or_not_at_all() -> None:
    assert found({0, 3, 5}, sequence(1), sequence(4)) == [4]


def test_a_wide_hole_stays() -> None:
    assert found({0, 5}, *(sequence(slot) for slot in range(1, 5))) == [1, 2, 3, 4]
    assert found({0, 6}, *(sequence(slot) for slot in range(1, 6))) == []


def with_checkpoint(one: SequenceState, n_ahead: int) -> None:
    one.checkpoints = [one.n_past + n_ahead]


def with_image(one: SequenceState) -> None:
    one.tokens[one.n_past] = -1


@pytest.mark.parametrize(
    ("change", "n_left", "is_able"),
    [
        (lambda one: None, 2, True),
        (lambda one: None, 1, False),
        (lambda one: with_checkpoint(one, 2), 100, True),
        (lambda one: with_checkpoint(one, 1), 100, False),
        (with_image, 100, False),
    ],
)
def test_a_token_that_has_logits_or_is_an_image_or_ends_at_a_checkpoint_fills_none(
    change: Callable[[SequenceState], None], n_left: int, is_able: bool
) -> None:
    one = sequence(1, n_left=n_left)
    change(one)
    assert bool(found({0, 2}, one)) == is_able


def test_the_rows_of_a_step_take_a_pass_less_for_each_hole() -> None:
    costs = known_costs(pass_s=0.006, row_s=0.001)
    scheduler = Scheduler(n_batch=2048, n_ubatch=512, n_outputs_max=64, max_gap_ms=100.0, costs=costs)
    readers = [sequence(slot) for slot in (1, 3, 5)]
    plan = scheduler.schedule([*(decoding(slot) for slot in (0, 2, 4, 6)), *readers])
    assert [(chunk.sequence.slot, chunk.n_tokens, chunk.n_outputs) for chunk in plan] == [
        (0, 1, 1),
        (1, 65, 0),
        (2, 1, 1),
        (3, 1, 0),
        (4, 1, 1),
        (5, 1, 0),
        (6, 1, 1),
    ]
    unfilled = [chunk for chunk in plan if chunk.n_outputs or chunk.n_tokens > 1]
    assert shape_of(rows_of(plan), 512).n_passes == 2
    assert shape_of(rows_of(unfilled), 512).n_passes == 4
