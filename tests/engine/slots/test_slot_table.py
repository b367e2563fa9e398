"""The slot table by itself: owners, LRU order, what is inconsistent. There is no context here at all."""

from __future__ import annotations

from array import array

import pytest

from ggufd.engine.messages.requests import CacheScope
from ggufd.engine.sequence.sequence import SequenceState
from ggufd.engine.slots.slot_table import SlotTable
from ggufd.errors import EngineFailure
from tests.support.fakes.fake_llama import make_request
from tests.support.fakes.slot_rig import ids


def make_table(n_slots: int, *kept: int) -> SlotTable:
    """Slots that hold a token each where they are named, used in this order."""
    table = SlotTable(n_slots)
    for index in kept:
        table.slots[index].tokens = array("i", [index])
        table.touch(table.slots[index])
    return table


def run(table: SlotTable, index: int, n_past: int = 0, **changes: object) -> SequenceState:
    sequence = SequenceState.of(make_request(index, b"abc", **changes), 0, 0.0)
    table.assign(table.slots[index], sequence)
    sequence.n_past = n_past
    return sequence


def test_the_least_recently_used_slot_is_evicted() -> None:
    table = make_table(3, 1, 2, 0)
    assert table.victim().index == 1
    table.touch(table.slots[1])
    assert table.victim().index == 2


def test_an_empty_slot_is_taken_before_any_content_and_the_nearest_to_the_running_ones() -> None:
    table = make_table(8, 6)
    run(table, 5, n_past=1)
    assert table.victim().index == 4
    run(table, 4, n_past=1)
    assert table.victim().index == 3


def test_a_running_slot_has_the_tokens_that_its_sequence_computed() -> None:
    table = make_table(1, 0)
    sequence = run(table, 0, n_past=2, cache_namespace="mine", person="me")
    (slot,) = table.running
    assert (table.idle, sequence.slot, slot.computed) == ([], 0, ids(b"ab"))
    assert (slot.n_computed, len(slot.tokens), slot.cache_scope, slot.person) == (2, 0, CacheScope("mine"), "me")


def test_a_vacated_slot_is_idle_with_what_it_is_left_with() -> None:
    table = SlotTable(2)
    sequence = run(table, 1, n_past=2)
    slot = table.vacate(sequence, ids(b"ab"))
    assert (slot.index, slot.is_idle, slot.n_computed, sequence.slot) == (1, True, 2, None)
    with pytest.raises(EngineFailure, match="without a slot"):
        table.vacate(sequence, array("i"))


def test_moved_keys_make_a_slot_unreadable_and_an_empty_one_never_is_readable() -> None:
    slot = make_table(1, 0).slots[0]
    assert slot.is_readable
    slot.is_shifted = True
    assert not slot.is_readable
    assert not SlotTable(1).slots[0].is_readable


def test_an_exchange_takes_along_owner_age_and_tokens() -> None:
    table = make_table(2, 1)
    table.slots[1].person, table.slots[1].cache_scope = "them", CacheScope("theirs")
    sequence = run(table, 0, n_past=3, cache_namespace="mine", person="me")
    ages = [slot.last_used for slot in table.slots]
    table.exchange(table.slots[0], table.slots[1])
    idle, running = table.slots
    assert (running.sequence, sequence.slot, idle.is_idle) == (sequence, 1, True)
    assert (list(idle.tokens), len(running.tokens)) == ([1], 0)
    assert [idle.person, running.person] == ["them", "me"]
    assert [idle.cache_scope[0], running.cache_scope[0]] == ["theirs", "mine"]
    assert [idle.last_used, running.last_used] == ages[::-1]
    assert list(table.violations()) == []


def test_no_two_contents_have_the_same_age() -> None:
    table = make_table(2, 0, 1, 0)
    run(table, 1)
    assert len({slot.last_used for slot in table.slots}) == 2


def test_what_contradicts_itself_is_named() -> None:
    table = SlotTable(3)
    run(table, 2).slot = 1
    table.slots[2].tokens = array("i", [1])
    assert list(table.violations()) == [
        "slot 2 runs a sequence that is in slot 1",
        "slot 2 runs and keeps tokens of its own",
    ]
