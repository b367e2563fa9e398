"""Shape of a step: how often llama.cpp goes over the weights for it, and for how many rows, behind how many tokens.

A batch is divided into ubatches as `llama_batch_allocr::split_equal` of llama.cpp does it where each sequence has a KV
cache of its own: rows of consecutive slots share one, each slot as many rows as the one with the fewest left.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

TILE = 64
"""Rows of a sequence from which on attention is computed in tiles, where it is flash attention on a CPU."""


class SlotRows(NamedTuple):
    """Rows of one slot in a batch, behind `n_past` tokens."""

    slot: int
    n_rows: int
    n_past: int


class StepShape(NamedTuple):
    """Counts of a step on which its time depends: passes over the weights, rows, and tokens before rows.

    `n_attended` is the sum, over rows, of the tokens before each, `n_attended_tiled` that of rows in tiles.
    """

    n_passes: float = 0
    n_rows: float = 0
    n_attended: float = 0
    n_attended_tiled: float = 0

    def plus(self, other: StepShape) -> StepShape:
        return StepShape(*(own + added for own, added in zip(self, other, strict=True)))


def shape_of(parts: Iterable[SlotRows], n_ubatch: int) -> StepShape:
    """Shape of a batch with these rows, `n_ubatch` of which are computed at once."""
    left = sorted(part for part in parts if part.n_rows > 0)
    shape = StepShape()
    while left:
        n_slots = _n_consecutive(left)
        n_rows = min(min(part.n_rows for part in left[:n_slots]), max(1, n_ubatch // n_slots))
        shape = shape.plus(_pass(left[:n_slots], n_rows))
        begun = [SlotRows(slot, n - n_rows, n_past + n_rows) for slot, n, n_past in left[:n_slots] if n > n_rows]
        left = begun + left[n_slots:]
    return shape


def _n_consecutive(parts: list[SlotRows]) -> int:
    """How many of the first slots follow one another without a hole."""
    first = parts[0].slot
    return next((n for n, part in enumerate(parts) if part.slot != first + n), len(parts))


def _pass(parts: list[SlotRows], n_rows: int) -> StepShape:
    """Shape of one ubatch, with as many rows of each slot."""
    n_attended = sum(n_rows * (part.n_past + (n_rows + 1) / 2) for part in parts)
    is_tiled = n_rows >= TILE
    return StepShape(1, n_rows * len(parts), 0.0 if is_tiled else n_attended, n_attended if is_tiled else 0.0)
