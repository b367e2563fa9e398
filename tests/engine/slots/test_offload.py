"""Offload by itself: slots are filled by hand; what is saved before it is lost, and what comes back."""

from __future__ import annotations

from array import array

import pytest

from ggufd.engine.kv_store.host_cache import HostCache
from ggufd.engine.kv_store.state_file import KeptState
from ggufd.engine.messages.requests import CacheScope
from ggufd.engine.slots.matching import PrefixMatcher
from ggufd.engine.slots.offload import Offload
from ggufd.errors import InvalidRequest
from tests.support.costs import FixedCosts
from tests.support.fakes.slot_rig import CHUNKS, SlotRig, ids

LONG = bytes(range(1, 101))
OTHER = LONG[::-1]


class Rig(SlotRig):
    """Slots filled by hand over a host cache of so many bytes; 9 ends a message."""

    def __init__(self, n_slots: int = 2, *, ram: int = 1 << 20, **decoder: object) -> None:
        super().__init__(n_slots, **decoder)
        self.host = HostCache(ram, only_whole=not self.decoder.copies_all)
        parts = self.table, self.cells, PrefixMatcher(self.decoder, self.table, self.host, CHUNKS), self.host
        self.offload = Offload(self.decoder, *parts, self.costs, self.decoder.clock, message_ends={9})

    def is_kept(self, tokens: bytes) -> bool:
        return self.host.holds(ids(tokens), CacheScope())


# --- save -------------------------------------------------------------------------------------------------------------


def test_a_slot_is_saved_once_and_its_cost_is_measured() -> None:
    rig = Rig(copy_s_per_token=0.01)
    slot = rig.keep(0, LONG)
    rig.offload.save(slot)
    rig.offload.save(slot)
    assert (len(rig.host), rig.decoder.n_reads) == (1, 1)
    assert rig.costs.save_s(100) == pytest.approx(1.0)


@pytest.mark.parametrize(("n_tokens", "is_kept"), [(63, False), (64, True)])
def test_a_short_content_is_not_worth_saving(n_tokens: int, is_kept: bool) -> None:
    rig = Rig()
    slot = rig.keep(0, LONG[:n_tokens])
    assert rig.offload.is_saved(slot)
    assert rig.is_kept(LONG[:n_tokens]) == is_kept


def test_nothing_is_read_without_a_budget_or_before_moved_keys_are_rotated() -> None:
    rig = Rig(ram=0)
    rig.offload.save(rig.keep(0, LONG))
    shifted = Rig()
    slot = shifted.keep(0, LONG)
    slot.is_shifted = True
    shifted.offload.save(slot)
    assert (rig.decoder.n_reads, shifted.decoder.n_reads) == (0, 0)
    assert not shifted.offload.is_saved(slot)


def test_a_slot_that_cannot_be_read_is_emptied() -> None:
    rig = Rig()
    slot = rig.keep(0, LONG)
    rig.decoder.bad_reads = {0}
    rig.offload.save(slot)
    rig.check()
    assert (slot.n_computed, len(rig.host), rig.cells.n_lost) == (0, 0, 1)


def test_only_a_content_counts_as_evicted() -> None:
    rig = Rig()
    rig.offload.make_room(rig.table.slots[1])
    assert rig.offload.n_evicted == 0
    rig.offload.make_room(rig.keep(0, LONG))
    assert rig.offload.n_evicted == 1


def test_the_next_victim_is_saved_while_idle_but_not_while_a_slot_is_empty() -> None:
    rig = Rig()
    rig.keep(0, LONG)
    rig.offload.save_next()
    assert len(rig.host) == 0
    rig.keep(1, OTHER)
    rig.offload.save_next()
    assert (rig.is_kept(LONG), rig.is_kept(OTHER)) == (True, False)


@pytest.mark.parametrize(("prefill_s_per_token", "is_saved"), [(0.19, False), (0.21, True)])
def test_a_save_hides_behind_a_prefill_of_twenty_times_its_length(prefill_s_per_token: float, is_saved: bool) -> None:
    rig = Rig()
    rig.keep(0, LONG)
    rig.keep(1, OTHER)
    rig.costs.save_s_per_token, rig.costs.steps = 0.01, FixedCosts(0.0, prefill_s_per_token)
    rig.offload.save_ahead(rig.make(LONG))
    assert rig.is_kept(LONG) == is_saved


# --- restore ----------------------------------------------------------------------------------------------------------


def test_a_restored_state_takes_the_victim_whose_content_is_saved() -> None:
    rig = Rig(n_slots=1)
    rig.offload.save(rig.keep(0, LONG))
    rig.cells.evict(rig.table.slots[0])
    slot = rig.keep(0, OTHER)
    assert rig.offload.restore(rig.make(LONG + b"x"))
    rig.check()
    assert (bytes(slot.tokens.tolist()), rig.is_kept(OTHER)) == (LONG, True)
    assert (rig.offload.n_restored, rig.offload.n_evicted) == (1, 1)


def test_a_state_that_a_slot_holds_as_well_is_not_restored() -> None:
    rig = Rig()
    rig.offload.save(rig.keep(0, LONG))
    assert not rig.offload.restore(rig.make(LONG + b"x"))
    assert rig.decoder.n_copies == 0


def test_a_state_that_cannot_be_restored_is_dropped_and_the_next_best_taken() -> None:
    rig = Rig(n_slots=1)
    for tokens in (LONG[:70] + b"x", LONG):
        rig.offload.save(rig.keep(0, tokens))
        rig.cells.evict(rig.table.slots[0])
    rig.decoder.bad_restores = {0: "short"}
    assert rig.offload.restore(rig.make(LONG + b"x"))
    rig.check()
    assert rig.holds(0) == LONG[:70] + b"x"
    assert (rig.is_kept(LONG), rig.cells.n_lost, rig.offload.n_restored) == (False, 1, 1)


def test_prompt_logprobs_restore_nothing() -> None:
    rig = Rig(n_slots=1)
    rig.offload.save(rig.keep(0, LONG))
    rig.cells.evict(rig.table.slots[0])
    assert not rig.offload.restore(rig.make(LONG + b"x", prompt_logprobs=True))


def test_without_a_disk_nothing_is_fetched() -> None:
    rig = Rig()
    assert rig.offload.fetch(rig.make(LONG)) is None


# --- slot files -------------------------------------------------------------------------------------------------------


def test_a_content_is_a_copy_with_its_owner() -> None:
    rig = Rig()
    slot = rig.keep(0, LONG, cache_namespace="mine", person="me")
    kept = rig.offload.content(slot)
    assert (bytes(kept.tokens.tolist()), kept.cache_scope, kept.person) == (LONG, CacheScope("mine"), "me")
    assert kept.tokens is not slot.tokens


def test_an_empty_slot_has_no_content() -> None:
    with pytest.raises(InvalidRequest, match="slot 0 keeps nothing that could be saved"):
        Rig().offload.content(Rig().table.slots[0])


def test_a_replaced_content_is_saved_before() -> None:
    rig = Rig()
    kept = rig.offload.content(rig.keep(0, LONG))
    rig.offload.replace(rig.keep(1, OTHER), kept)
    rig.check()
    assert (rig.holds(1), rig.is_kept(OTHER)) == (LONG, True)


def test_a_saved_slot_that_does_not_fit_changes_nothing() -> None:
    rig = Rig()
    slot = rig.keep(0, LONG)
    kept = rig.offload.content(slot)
    kept.tokens = array("i", [1] * 257)
    with pytest.raises(InvalidRequest, match="the saved slot has 257 tokens, and a slot holds 256 here"):
        rig.offload.replace(slot, kept)
    assert rig.holds(0) == LONG


def test_a_saved_slot_that_cannot_be_taken_in_leaves_an_empty_one() -> None:
    rig = Rig()
    slot = rig.keep(0, LONG)
    kept = rig.offload.content(slot)
    rig.decoder.bad_restores = {0: "refused"}
    with pytest.raises(InvalidRequest, match="the saved slot cannot be taken in: the state of slot 0"):
        rig.offload.replace(slot, kept)
    rig.check()
    assert rig.holds(0) == b""


# --- suspended sequences and checkpoints ------------------------------------------------------------------------------


def test_a_suspended_state_serves_others_without_being_read_again() -> None:
    rig = Rig()
    slot = rig.keep(0, LONG)
    sequence = rig.make(LONG)
    sequence.state = rig.cells.read(slot)
    rig.offload.keep_suspended(sequence, slot)
    rig.offload.save(slot)
    assert (rig.is_kept(LONG), rig.decoder.n_reads) == (True, 1)
    found = rig.host.match(ids(LONG + b"x"), CacheScope())
    assert found is not None
    assert found[0].state is sequence.state


def test_a_cache_that_can_be_cut_has_no_checkpoints() -> None:
    rig = Rig()
    rig.keep(0, LONG[:70])
    sequence = rig.make(LONG)
    rig.offload.plan_checkpoints(sequence, 0)
    assert (sequence.checkpoints, rig.offload.n_parted(sequence)) == ([], 0)


def test_checkpoints_are_planned_where_a_cache_cannot_be_cut_and_saved_once() -> None:
    rig = Rig(can_trim=False)
    rig.keep(0, LONG[:70] + b"x")
    prompt = LONG[20:90] + bytes([9]) + LONG[20:]
    sequence = rig.run(1, prompt, 71)
    assert rig.offload.n_parted(rig.make(LONG)) == 70
    rig.offload.plan_checkpoints(sequence, 0)
    assert sequence.checkpoints == [150]
    rig.compute(sequence, 79)
    rig.offload.keep_checkpoint(sequence)
    rig.offload.keep_checkpoint(sequence)
    assert (rig.is_kept(prompt[:150]), rig.decoder.n_reads) == (True, 1)


def test_a_checkpoint_that_cannot_be_read_fails_nobody() -> None:
    rig = Rig(can_trim=False)
    sequence = rig.run(1, LONG)
    rig.decoder.bad_reads = {0}
    rig.offload.keep_checkpoint(sequence)
    assert len(rig.host) == 0


def test_what_begins_alike_is_dropped_together() -> None:
    rig = Rig(can_trim=False)
    state = rig.cells.read(rig.keep(0, b"z"))
    states = {name: KeptState(ids(name), state.copy()) for name in (LONG, LONG[:40], OTHER)}
    for kept in states.values():
        rig.host.insert(kept)
    rig.offload.drop(states[OTHER])
    rig.offload.drop_like(ids(LONG), CacheScope(), 41)
    assert [rig.is_kept(name) for name in states] == [False, True, False]
