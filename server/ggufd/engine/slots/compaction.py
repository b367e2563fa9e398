"""Slot compaction: running sequences are moved into one contiguous range of slots.

llama.cpp computes the rows of consecutive slots together; a hole between running slots costs a pass over all weights
(measured: 4 rows of neighbours 9.9 ms, of slots 0, 4, 8, 12 17.8 ms). Moving a sequence costs a copy of its state.
Holes are paid for as long as their cost so far is below that of a move: never more than twice the best in hindsight.
Deterministic sequences share no batch, so they stay where they are and count for nothing.
"""

from __future__ import annotations

import logging

from ggufd.engine.slots.cells import KVCells
from ggufd.engine.slots.copy_costs import CopyCosts
from ggufd.engine.slots.slot_table import Slot, SlotTable
from ggufd.errors import EngineFailure

logger = logging.getLogger(__name__)


class Compaction:
    """Closes the holes between the running slots of `table`, one move at a time."""

    def __init__(self, table: SlotTable, cells: KVCells, costs: CopyCosts) -> None:
        self._table = table
        self._cells = cells
        self._costs = costs
        self._debt_s = 0.0

    def close_holes(self, last_step_s: float) -> None:
        """Move one running sequence next to the others once their holes have cost as much as that move."""
        running = [slot for slot in self._table.running if not slot.is_alone]
        if not running or running[-1].index - running[0].index < len(running):
            self._debt_s = 0.0
            return
        n_segments = sum(1 for i, slot in enumerate(running) if i == 0 or running[i - 1].index + 1 < slot.index)
        self._debt_s += last_step_s * (n_segments - 1) / n_segments
        move = self._best_move(running)
        if move is None:
            self._debt_s = 0.0
            return
        stray, target = move
        if self._debt_s >= self._costs.measured_copy_s(stray.n_computed + target.n_computed):
            self._debt_s = 0.0
            self._move(stray, target)

    def _best_move(self, running: list[Slot]) -> tuple[Slot, Slot] | None:
        """The running slot outside the fullest window of neighbours, and the idle one inside, with least to copy.

        None where every window has a slot that stays.
        """
        slots, width = self._table.slots, len(running)
        inside = {slot.index for slot in running}
        staying = {slot.index for slot in self._table.running} - inside
        starts = [first for first in range(len(slots) - width + 1) if staying.isdisjoint(range(first, first + width))]
        if not starts:
            return None
        start = max(starts, key=lambda first: len(inside.intersection(range(first, first + width))))
        window = range(start, start + width)
        strays = [slot for slot in running if slot.index not in window]
        targets = [slots[i] for i in window if i not in inside]
        return min(strays, key=lambda s: s.n_computed), min(targets, key=lambda s: s.n_computed)

    def _move(self, stray: Slot, target: Slot) -> None:
        """Swap the two slots; where that fails, neither content can be trusted, and the sequence is computed again."""
        sequence = stray.sequence
        assert sequence is not None
        try:
            self._cells.swap(stray, target)
        except EngineFailure as error:
            logger.warning("a sequence could not be moved and is computed again: %s", error)
            self._cells.n_lost += 1
            self._cells.reset(sequence)
            self._cells.evict(target if target.is_idle else stray)
