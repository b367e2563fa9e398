"""Cells of the slots over the fake context: reads, writes, copies, moves and trims, each checked against its count."""

from __future__ import annotations

import numpy as np
import pytest

from ggufd.engine.kv_store.state_file import KeptState
from ggufd.engine.messages.requests import CacheScope
from ggufd.engine.slots.chunk_reuse import Move
from ggufd.errors import EngineFailure
from tests.support.fakes.slot_rig import SlotRig, ids

LONG = bytes(range(1, 101))


# --- whole states -----------------------------------------------------------------------------------------------------


def test_a_copy_holds_the_same_tokens_and_leaves_its_source() -> None:
    rig = SlotRig()
    source, target = rig.keep(1, LONG), rig.table.slots[3]
    rig.cells.copy(source, target)
    rig.check()
    assert rig.holds(1) == rig.holds(3) == LONG
    target.tokens.append(7)
    assert source.tokens.tolist() == list(LONG)


def test_one_reading_serves_all_copies_of_a_content() -> None:
    rig = SlotRig()
    rig.run(0, LONG)
    for target in (1, 2, 3):
        rig.cells.copy(rig.table.slots[0], rig.table.slots[target])
    assert rig.decoder.n_reads == 1
    assert rig.holds(1) == rig.holds(2) == rig.holds(3) == LONG


@pytest.mark.parametrize("other", [LONG[::-1], LONG[:50]], ids=["as long", "shorter"])
def test_a_reading_is_not_used_after_its_slot_was_taken(other: bytes) -> None:
    """In one round: a copy is made of an idle slot, another chat takes that slot, and a copy of that one is wanted."""
    rig = SlotRig()
    slot = rig.keep(1, LONG)
    rig.cells.copy(slot, rig.table.slots[0])
    rig.cells.evict(slot)
    rig.keep(1, other)
    rig.cells.copy(slot, rig.table.slots[2])
    rig.check()
    assert rig.holds(2) == other


def test_a_released_reading_is_made_again() -> None:
    rig = SlotRig()
    slot = rig.keep(0, LONG)
    rig.cells.copy(slot, rig.table.slots[1])
    rig.cells.release_copies()
    rig.cells.copy(slot, rig.table.slots[2])
    assert rig.decoder.n_reads == 2


def test_a_state_that_arrives_short_is_noticed() -> None:
    rig = SlotRig()
    source = rig.keep(0, LONG)
    rig.decoder.bad_restores = {0: "short"}
    with pytest.raises(EngineFailure, match="slot 1 holds 99 tokens, 100 were expected"):
        rig.cells.copy(source, rig.table.slots[1])


def test_a_restored_state_brings_its_owner_and_is_measured() -> None:
    rig = SlotRig(copy_s_per_token=0.01)
    kept = KeptState(ids(LONG), rig.cells.read(rig.keep(0, LONG)), CacheScope("theirs"), "them")
    slot = rig.table.slots[2]
    rig.cells.restore(slot, kept)
    rig.check()
    assert (slot.cache_scope, slot.person) == (CacheScope("theirs"), "them")
    assert slot.tokens is not kept.tokens
    assert rig.costs.bytes_per_token > 0
    assert slot.last_used == max(one.last_used for one in rig.table.slots)


def test_a_lost_content_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    rig = SlotRig()
    rig.cells.lose(rig.keep(0, LONG), EngineFailure("it came back short"))
    rig.check()
    assert (rig.cells.n_lost, rig.holds(0)) == (1, b"")
    assert "it came back short" in caplog.text


@pytest.mark.parametrize("idle", [b"", b"idle" * 20], ids=["with an empty slot", "with a cached prefix"])
def test_a_swap_exchanges_contents(idle: bytes) -> None:
    rig = SlotRig()
    sequence = rig.run(0, LONG)
    if idle:
        rig.keep(2, idle)
    rig.cells.swap(rig.table.slots[0], rig.table.slots[2])
    rig.check()
    assert (sequence.slot, rig.holds(2), rig.holds(0)) == (2, LONG, idle)


# --- parts of a slot --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("can_trim", "n_past"), [(True, 97), (False, 0)])
def test_tokens_taken_back_leave_one_to_compute(can_trim: bool, n_past: int) -> None:
    rig = SlotRig(can_trim=can_trim)
    sequence = rig.run(0, LONG)
    del sequence.tokens[98:]
    rig.cells.rewind(sequence)
    rig.check()
    assert sequence.n_past == n_past


def test_a_copy_that_cannot_be_cut_goes_as_a_whole() -> None:
    rig = SlotRig(copies_all=False)
    original, copy = rig.keep(0, LONG), rig.table.slots[1]
    rig.cells.copy(original, copy)
    assert rig.cells.trim(original, 60) == 60
    assert (copy.n_fixed, rig.cells.trim(copy, 60), copy.n_fixed) == (100, 0, 0)
    assert (rig.holds(0), rig.holds(1)) == (LONG[:60], b"")


def test_a_reset_sequence_is_computed_from_its_beginning() -> None:
    rig = SlotRig()
    sequence = rig.run(0, LONG)
    rig.cells.reset(sequence)
    assert (sequence.n_past, rig.holds(0)) == (0, b"")
    rig.compute(sequence)


def test_moved_tokens_make_the_slot_unreadable_until_the_next_decode() -> None:
    rig = SlotRig()
    slot = rig.keep(0, LONG)
    rig.cells.move(slot, [Move(50, 20, 10), Move(90, 30, 10)])
    slot.tokens = ids(LONG[:20] + LONG[50:60] + LONG[90:])
    rig.check()
    assert not slot.is_readable
    rig.run(1, b"x")
    assert slot.is_readable


@pytest.mark.parametrize("n_past", [100, 45, 30], ids=["behind the gap", "within it", "before it"])
def test_a_context_shift_drops_tokens_and_keeps_what_is_computed(n_past: int) -> None:
    rig = SlotRig()
    sequence = rig.run(0, LONG, n_past)
    rig.cells.shift(sequence, 40, 20)
    rig.check()
    assert bytes(sequence.tokens.tolist()) == LONG[:40] + LONG[60:]
    # The last token is computed again: its logits are needed.
    assert sequence.n_past == {100: 79, 45: 40, 30: 30}[n_past]


def test_an_idle_slot_is_extended_by_what_was_computed_in_it() -> None:
    rig = SlotRig()
    slot = rig.keep(0, LONG)
    rig.decoder.batch.clear()
    rig.decoder.batch.add(0, ids(b"more"), len(LONG), 0)
    rig.decoder.decode()
    rig.cells.extend(slot, ids(b"more"))
    rig.check()
    with pytest.raises(EngineFailure, match="slot 0 holds 104 tokens, 105 were expected"):
        rig.cells.extend(slot, ids(b"!"))


# --- eviction and integrity -------------------------------------------------------------------------------------------


def test_an_evicted_slot_is_empty_here_and_in_the_context_and_the_next_victim() -> None:
    rig = SlotRig(n_slots=2)
    rig.keep(0, LONG)
    newest = rig.keep(1, LONG)
    rig.cells.evict(newest)
    rig.check()
    assert (rig.holds(1), rig.table.victim()) == (b"", newest)


def test_a_running_slot_cannot_be_evicted() -> None:
    rig = SlotRig()
    rig.run(0, LONG)
    with pytest.raises(EngineFailure, match="slot 0 is running"):
        rig.cells.evict(rig.table.slots[0])


def test_a_slot_that_holds_something_else_is_named() -> None:
    rig = SlotRig()
    rig.keep(2, LONG)
    rig.decoder.trim(2, 50)
    assert list(rig.cells.violations()) == ["slot 2 holds 50 tokens instead of 100"]


def test_a_state_of_nothing_is_refused() -> None:
    rig = SlotRig()
    with pytest.raises(EngineFailure, match="could not be restored"):
        rig.cells.write(rig.table.slots[0], ids(LONG), np.zeros(4, np.uint8))
