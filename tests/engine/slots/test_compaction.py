"""Compaction by itself: sequences are put into slots by hand, and move together as their holes have cost a move."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.sequence.sequence import SequenceState
from ggufd.engine.slots.compaction import Compaction
from ggufd.engine.slots.copy_costs import CopyCosts
from tests.support.fakes.slot_rig import SlotRig


class Rig(SlotRig):
    """Sequences of 50 tokens that run in these slots; idle ones of as many in all others."""

    def __init__(self, n_slots: int, running: list[int], costs: CopyCosts | None = None) -> None:
        super().__init__(n_slots, costs=costs)
        self.compaction = Compaction(self.table, self.cells, self.costs)
        self.sequences: dict[int, SequenceState] = {}
        for index in range(n_slots):
            text = bytes([65 + index]) * 50
            if index in running:
                self.sequences[index] = self.run(index, text, cache_namespace=f"n{index}", person=f"a{index}")
            else:
                self.keep(index, text, cache_namespace=f"n{index}", person=f"a{index}")

    @property
    def places(self) -> list[int]:
        return [slot.index for slot in self.table.running]


def test_neighbours_stay_where_they_are() -> None:
    rig = Rig(6, [2, 3, 4])
    for _ in range(100):
        rig.compaction.close_holes(1.0)
    assert rig.places == [2, 3, 4]
    assert rig.decoder.n_copies == 0


def test_a_stray_moves_beside_the_others_and_swaps_with_the_idle_chat() -> None:
    rig = Rig(6, [0, 1, 5])
    rig.compaction.close_holes(1.0)
    rig.check()
    assert rig.sequences[5].slot == 2
    assert (rig.holds(2), rig.holds(5)) == (b"F" * 50, b"C" * 50)


def test_what_is_swapped_takes_its_owner_along() -> None:
    rig = Rig(6, [0, 1, 5])
    rig.compaction.close_holes(1.0)
    moved = [(slot.person, slot.cache_scope[0]) for slot in (rig.table.slots[2], rig.table.slots[5])]
    assert moved == [("a5", "n5"), ("a2", "n2")]


def test_what_is_computed_alone_stays_and_makes_no_hole() -> None:
    rig = Rig(6, [0, 3, 5])
    for index in (3, 5):
        sequence = rig.sequences[index]
        sequence.request = dataclasses.replace(sequence.request, is_deterministic=True)
    for _ in range(100):
        rig.compaction.close_holes(1.0)
    assert rig.places == [0, 3, 5]
    rig = Rig(6, [0, 2, 3])
    rig.sequences[3].request = dataclasses.replace(rig.sequences[3].request, is_deterministic=True)
    rig.compaction.close_holes(1.0)
    rig.check()
    assert (rig.sequences[3].slot, sorted(rig.places)) in [(3, [0, 1, 3]), (3, [1, 2, 3])]


def test_a_move_waits_until_the_holes_have_cost_as_much() -> None:
    # 50 running and 50 idle tokens to move: a second. Half of each step of a tenth is owed to the hole.
    rig = Rig(6, [0, 5], CopyCosts(copy_bytes_per_s=400.0, bytes_per_token=4.0))
    n_steps = 0
    while rig.decoder.n_copies == 0:
        rig.compaction.close_holes(0.1)
        n_steps += 1
        assert n_steps < 30
    assert n_steps in (20, 21)


def test_a_debt_is_forgotten_once_there_is_no_hole() -> None:
    rig = Rig(6, [0, 5], CopyCosts(copy_bytes_per_s=400.0, bytes_per_token=4.0))
    for _ in range(15):
        rig.compaction.close_holes(0.1)
    slot = rig.table.vacate(rig.sequences[5], rig.sequences[5].tokens[:])
    rig.compaction.close_holes(0.1)
    rig.table.assign(slot, rig.sequences[5])
    for _ in range(15):
        rig.compaction.close_holes(0.1)
    assert rig.decoder.n_copies == 0


@pytest.mark.parametrize("fault", ["short", "refused"])
@pytest.mark.parametrize("which", [0, 1], ids=["the moving state", "the staying state"])
def test_what_cannot_be_moved_is_computed_again(fault: str, which: int) -> None:
    rig = Rig(6, [0, 1, 5])
    rig.decoder.bad_restores = {which: fault}
    rig.compaction.close_holes(1.0)
    rig.check()
    assert rig.cells.n_lost == 1
    sequence = rig.sequences[5]
    assert sequence.n_past == 0
    rig.compute(sequence)
    assert bytes(sequence.tokens.tolist()) == b"F" * 50


@given(st.sets(st.integers(0, 9), min_size=1, max_size=9))
def test_wherever_they_run_they_end_in_one_range_with_what_they_hold(running: set[int]) -> None:
    rig = Rig(10, sorted(running))
    texts = {index: rig.holds(index) for index in running}
    for _ in range(20):
        rig.compaction.close_holes(10.0)
        rig.check()
    assert rig.places == list(range(rig.places[0], rig.places[0] + len(running)))
    for index, sequence in rig.sequences.items():
        assert sequence.slot is not None
        assert rig.holds(sequence.slot) == texts[index]
    assert sorted(rig.holds(index) for index in range(10)) == [bytes([65 + index]) * 50 for index in range(10)]
