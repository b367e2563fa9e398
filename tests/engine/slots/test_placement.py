"""Placement: where a sequence goes, what it reuses there, what stays when it leaves, one rule a test."""

from __future__ import annotations

import pytest

from ggufd.engine.kv_store.host_cache import HostCache
from ggufd.engine.messages.events import CacheDifference, CacheReport, CacheSource
from ggufd.engine.messages.requests import CacheScope
from ggufd.engine.sequence.sequence import SequenceState
from ggufd.engine.slots.matching import PrefixMatcher
from ggufd.engine.slots.offload import Offload
from ggufd.engine.slots.placement import SlotPlacement
from ggufd.engine.slots.slot_table import Slot
from ggufd.errors import EngineFailure
from tests.support.costs import FixedCosts
from tests.support.fakes.slot_rig import CHUNKS, SlotRig, ids

LONG = bytes(range(1, 101))


class Rig(SlotRig):
    """Placement over a fake context; sequences are run by hand."""

    def __init__(self, n_slots: int = 4, *, ram: int = 0, **decoder: object) -> None:
        super().__init__(n_slots, **decoder)
        self.host = HostCache(ram, only_whole=not self.decoder.copies_all)
        matcher = PrefixMatcher(self.decoder, self.table, self.host, CHUNKS)
        parts = self.decoder, self.table, self.cells, matcher
        self.offload = Offload(*parts, self.host, self.costs, self.decoder.clock)
        self.placement = SlotPlacement(*parts, self.offload, self.costs, CHUNKS)

    def lock(self, prompt: bytes, **changes: object) -> SequenceState:
        sequence = self.make(prompt, **changes)
        assert self.placement.lock(sequence)
        self.check()
        return sequence

    def leave(self, prompt: bytes, **changes: object) -> int:
        """Place a prompt, compute it and leave it as cached prefix; the slot it is in."""
        sequence = self.lock(prompt, **changes)
        self.compute(sequence)
        slot = sequence.slot
        assert slot is not None
        self.placement.insert(sequence)
        self.check()
        return slot

    def claim(self, prompt: bytes, *keep: Slot) -> Slot | None:
        slot = self.placement.claim_idle(ids(prompt), CacheScope(), "me", keep=list(keep))
        self.check()
        return slot


# --- lock -------------------------------------------------------------------------------------------------------------


def test_a_slot_is_taken_in_place_when_most_of_it_is_reused() -> None:
    rig = Rig()
    slot = rig.leave(LONG)
    sequence = rig.lock(LONG[:80] + b"new")
    assert (sequence.slot, sequence.n_past, sequence.n_cached) == (slot, 80, 80)
    assert rig.holds(slot) == LONG[:80]


def test_a_long_chat_is_copied_from_not_cut_when_little_of_it_is_shared() -> None:
    rig = Rig()
    slot = rig.leave(LONG + b"a" * 100)
    sequence = rig.lock(LONG[:60] + b"new")
    assert sequence.slot is not None
    assert sequence.slot != slot
    assert rig.holds(sequence.slot) == LONG[:60]
    assert rig.holds(slot) == LONG + b"a" * 100


def test_a_short_prompt_is_copied_from_the_longer_chat_that_it_became() -> None:
    rig = Rig()
    slot = rig.leave(LONG[:20] + b"a" * 30)
    sequence = rig.lock(LONG[:20])
    assert (sequence.slot != slot, sequence.n_cached) == (True, 19)
    assert rig.holds(slot) == LONG[:20] + b"a" * 30


def test_a_long_chat_is_not_copied_for_a_few_tokens_of_it() -> None:
    rig = Rig()
    rig.leave(LONG + b"a" * 100)
    assert rig.lock(LONG[:5] + b"new").n_cached == 0
    assert rig.decoder.n_copies == 0


def test_a_running_slot_is_copied_from_and_goes_on() -> None:
    rig = Rig()
    leader = rig.lock(LONG)
    rig.compute(leader)
    follower = rig.lock(LONG + b"more")
    assert follower.slot != leader.slot
    assert follower.n_cached == len(LONG)
    assert leader.slot is not None
    assert rig.holds(leader.slot) == LONG


def test_a_copy_dearer_than_the_prefill_is_not_made() -> None:
    rig = Rig(copy_s_per_token=10.0)
    rig.compute(rig.lock(LONG))
    rig.lock(LONG + b"first copy, measured")
    n_copies = rig.decoder.n_copies
    rig.costs.steps = FixedCosts(0.0, 1e-9)
    sequence = rig.lock(LONG + b"second")
    assert (sequence.n_past, rig.decoder.n_copies) == (0, n_copies)


def test_a_few_shared_tokens_take_nobodys_chat() -> None:
    rig = Rig(n_slots=2)
    slot = rig.leave(LONG)
    sequence = rig.lock(LONG[:10] + b"else")
    assert sequence.slot != slot
    assert rig.holds(slot) == LONG


def test_the_least_recent_chat_is_missed_least() -> None:
    rig = Rig(n_slots=3)
    slots = [rig.leave(bytes([65 + i]) * 40) for i in range(3)]
    assert len(set(slots)) == 3
    rig.leave(b"A" * 40 + b"again")
    assert rig.lock(b"stranger").slot == slots[1]


def test_an_empty_slot_comes_before_any_chat_and_beside_those_that_run() -> None:
    rig = Rig(n_slots=6)
    for i in range(3):
        rig.compute(rig.lock(bytes([65 + i]) * 40))
    running = sorted(slot.index for slot in rig.table.running)
    assert running[-1] - running[0] == 2


def test_no_slot_is_free() -> None:
    rig = Rig(n_slots=1)
    rig.lock(LONG)
    assert not rig.placement.lock(rig.make(b"other"))


def test_one_reading_serves_all_copies_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(n_slots=4)
    rig.compute(rig.lock(LONG))
    reads = []
    get_state = rig.decoder.get_state
    monkeypatch.setattr(rig.decoder, "get_state", lambda slot: reads.append(slot) or get_state(slot))
    followers = [rig.lock(LONG + bytes([100 + i])) for i in range(3)]
    assert len(reads) == 1
    assert all(rig.holds(follower.slot) == LONG for follower in followers if follower.slot is not None)


def test_a_released_copy_is_read_again() -> None:
    rig = Rig(n_slots=3)
    leader = rig.lock(LONG)
    rig.compute(leader)
    rig.lock(LONG + b"x")
    rig.cells.release_copies()
    leader.tokens.append(7)
    rig.compute(leader)
    follower = rig.lock(LONG + b"\x07y")
    assert follower.slot is not None
    assert rig.holds(follower.slot) == LONG + b"\x07"


def test_a_released_copy_is_not_taken_for_another_chat_of_the_same_length() -> None:
    rig = Rig(n_slots=3)
    leader = rig.lock(LONG)
    rig.compute(leader)
    rig.lock(LONG + b"x")
    rig.cells.release_copies()
    slot = leader.slot
    rig.placement.forget(leader)
    other = rig.lock(LONG[::-1])
    rig.compute(other)
    assert other.slot == slot
    follower = rig.lock(LONG[::-1] + b"y")
    assert follower.slot is not None
    assert rig.holds(follower.slot) == LONG[::-1]


def test_a_state_that_arrives_short_is_noticed_and_the_slot_emptied(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(n_slots=2)
    rig.compute(rig.lock(LONG))
    rig.decoder.bad_restores = {0: "short"}
    sequence = rig.lock(LONG + b"x")
    assert "99 tokens, 100 were expected" in caplog.text
    assert (sequence.n_past, sequence.n_cached) == (0, 0)
    assert rig.cells.n_lost == 1
    rig.check()


def test_a_slot_that_cannot_be_emptied_fails_its_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(n_slots=1)
    monkeypatch.setattr(rig.decoder, "n_past", lambda slot: 3)
    sequence = rig.make(LONG)
    with pytest.raises(EngineFailure, match="holds 3 tokens, 0 were expected"):
        rig.placement.lock(sequence)
    assert sequence.slot is None
    assert len(rig.table.idle) == 1


# --- insert, forget ---------------------------------------------------------------------------------------------------


def test_a_slot_keeps_what_was_computed_not_what_was_said() -> None:
    rig = Rig()
    sequence = rig.lock(LONG)
    rig.compute(sequence, 40)
    slot = rig.table.slots[sequence.slot or 0]
    rig.placement.insert(sequence)
    assert bytes(slot.tokens.tolist()) == LONG[:40]
    assert sequence.slot is None
    rig.check()


def test_what_is_forgotten_is_not_reused() -> None:
    rig = Rig()
    sequence = rig.lock(LONG)
    rig.compute(sequence)
    rig.placement.forget(sequence)
    rig.check()
    assert rig.lock(LONG).n_cached == 0


# --- what is told of it -----------------------------------------------------------------------------------------------


def explained(rig: Rig, prompt: bytes, **changes: object) -> CacheReport:
    """What is told of a prompt that is placed now."""
    sequence = rig.lock(prompt, explain_cache=True, **changes)
    rig.compute(sequence)
    rig.placement.insert(sequence)
    assert sequence.cache_report is not None
    return sequence.cache_report


def test_nobody_is_told_who_did_not_ask() -> None:
    assert Rig().lock(LONG).cache_report is None


def test_an_empty_cache_differs_from_nothing() -> None:
    assert explained(Rig(), LONG) == CacheReport(None, None)


@pytest.mark.parametrize("prompt", [LONG + b"more", LONG, LONG[:60]], ids=["longer", "the same", "shorter"])
def test_what_goes_on_or_ends_within_a_slot_differs_nowhere(prompt: bytes) -> None:
    rig = Rig()
    rig.leave(LONG)
    assert explained(rig, prompt) == CacheReport(CacheSource.SAME_SLOT, None)


def test_the_first_difference_has_what_the_slot_held_there() -> None:
    rig = Rig()
    rig.leave(LONG)
    report = explained(rig, LONG[:70] + b"other")
    assert report == CacheReport(CacheSource.SAME_SLOT, CacheDifference(70, tuple(LONG[70:86])))


def test_a_copy_is_told_and_a_running_slot_explained() -> None:
    rig = Rig()
    rig.compute(rig.lock(LONG))
    report = explained(rig, LONG[:80] + b"other")
    assert report == CacheReport(CacheSource.COPIED, CacheDifference(80, tuple(LONG[80:96])))


def test_anothers_text_is_never_told() -> None:
    rig = Rig()
    theirs = rig.lock(LONG, person="them")
    rig.compute(theirs)
    rig.placement.insert(theirs)
    report = explained(rig, LONG[:70] + b"other", person="me")
    assert report == CacheReport(CacheSource.SAME_SLOT, CacheDifference(70, None))
    # What the slot holds by now is mine.
    report = explained(rig, LONG[:70] + b"third", person="me")
    assert report.difference == CacheDifference(70, tuple(b"other"))


# --- cache scopes -----------------------------------------------------------------------------------------------------


def test_a_scope_reuses_its_own_only() -> None:
    rig = Rig()
    rig.leave(LONG, cache_namespace="them")
    assert rig.lock(LONG, cache_namespace="me").n_cached == 0
    assert rig.lock(LONG, cache_namespace="them").n_cached == len(LONG) - 1


# --- offload ----------------------------------------------------------------------------------------------------------


def test_prompt_logprobs_reuse_nothing() -> None:
    rig = Rig()
    rig.leave(LONG)
    sequence = rig.lock(LONG, prompt_logprobs=True)
    assert (sequence.n_past, sequence.n_cached) == (0, 0)


def test_what_is_overwritten_is_saved_and_told_when_it_is_restored() -> None:
    rig = Rig(n_slots=1, ram=1 << 20)
    rig.leave(LONG)
    rig.leave(b"other " * 20)
    assert rig.offload.n_evicted == 1
    report = explained(rig, LONG + b"more")
    assert report == CacheReport(CacheSource.RESTORED, None)
    assert (rig.offload.n_restored, rig.offload.n_evicted) == (1, 2)


def test_a_draft_does_not_stay_in_the_slot() -> None:
    rig = Rig()
    sequence = rig.lock(LONG)
    rig.compute(sequence)
    assert sequence.slot is not None
    slot = sequence.slot
    rig.decoder.batch.clear()
    rig.decoder.batch.add(slot, ids(b"draft"), len(LONG), 1)
    rig.decoder.decode()
    rig.placement.insert(sequence)
    rig.check()
    assert rig.holds(slot) == LONG


@pytest.mark.parametrize(("can_trim", "n_left"), [(True, 97), (False, 0)])
def test_tokens_that_were_taken_back_do_not_stay_in_the_slot(can_trim: bool, n_left: int) -> None:
    rig = Rig(can_trim=can_trim)
    sequence = rig.lock(LONG)
    rig.compute(sequence)
    assert sequence.slot is not None
    slot = sequence.slot
    del sequence.tokens[97:]
    rig.placement.insert(sequence)
    rig.check()
    assert rig.holds(slot) == LONG[:n_left]


def test_what_may_have_gone_wrong_is_discarded_with_all_that_begins_alike() -> None:
    rig = Rig(n_slots=4, ram=1 << 20)
    rig.leave(LONG[:40] + b"x" * 30)
    other = rig.leave(LONG[:30] + b"y" * 90)
    rig.offload.save(rig.table.slots[other])
    rig.offload.save(next(slot for slot in rig.table.idle if slot.n_computed == 70))
    sequence = rig.lock(LONG)
    rig.compute(sequence)
    rig.placement.discard(sequence)
    rig.check()
    assert [slot.index for slot in rig.table.slots if slot.n_computed] == [other]
    assert rig.host.match(ids(LONG), CacheScope()) is not None
    assert rig.host.longest_common(ids(LONG), CacheScope()) == 30
    assert rig.cells.n_lost == 1


# --- suspend and resume -----------------------------------------------------------------------------------------------


def test_a_suspended_sequence_goes_on_in_another_slot_with_exactly_what_it_had() -> None:
    rig = Rig(n_slots=2)
    sequence = rig.lock(LONG)
    rig.compute(sequence)
    before = sequence.slot
    rig.placement.suspend(sequence)
    rig.check()
    assert (sequence.slot, len(rig.table.idle)) == (None, 2)
    rig.placement.resume(sequence)
    rig.check()
    assert sequence.slot not in (None, before)
    assert (sequence.n_past, sequence.state, rig.holds(sequence.slot or 0)) == (len(LONG), None, LONG)


@pytest.mark.parametrize("fault", ["short", "refused"])
def test_a_suspended_sequence_whose_state_is_lost_is_computed_again(fault: str) -> None:
    rig = Rig(n_slots=1, ram=1 << 20)
    sequence = rig.lock(LONG)
    rig.compute(sequence)
    rig.placement.suspend(sequence)
    assert len(rig.host) == 1
    rig.decoder.bad_restores = {0: fault}
    rig.placement.resume(sequence)
    rig.check()
    assert (sequence.n_past, rig.cells.n_lost, len(rig.host)) == (0, 1, 0)
    rig.compute(sequence)


def test_a_state_that_cannot_be_read_suspends_nobody() -> None:
    rig = Rig()
    sequence = rig.lock(LONG)
    rig.compute(sequence)
    rig.decoder.bad_reads = {0}
    with pytest.raises(EngineFailure, match="could not be read"):
        rig.placement.suspend(sequence)
    rig.check()
    assert sequence.slot is not None


# --- background prefill -----------------------------------------------------------------------------------------------


def test_a_claimed_slot_is_trimmed_to_the_prefix_that_it_has() -> None:
    rig = Rig()
    slot = rig.table.slots[rig.leave(LONG)]
    assert rig.claim(LONG[:80] + b"new") is slot
    assert (rig.holds(slot.index), slot.person) == (LONG[:80], "me")


@pytest.mark.parametrize("other", [{"cache_namespace": "them"}, {"is_deterministic": True}])
def test_a_claim_reuses_nothing_of_another_scope(other: dict[str, object]) -> None:
    rig = Rig(n_slots=1, ram=1 << 20)
    rig.leave(LONG, **other)
    slot = rig.claim(LONG[:80] + b"new")
    assert slot is not None
    assert (rig.holds(slot.index), slot.cache_scope) == (b"", CacheScope())


def test_a_claimed_slot_gets_a_copy_of_the_longest_prefix() -> None:
    rig = Rig(n_slots=2)
    rig.leave(LONG + b"a" * 100)
    slot = rig.claim(LONG[:60] + b"new")
    assert slot is not None
    assert rig.holds(slot.index) == LONG[:60]
    assert rig.holds(1 - slot.index) == LONG + b"a" * 100


def test_a_claim_takes_none_that_is_kept_or_running() -> None:
    rig = Rig(n_slots=2)
    own = rig.table.slots[rig.leave(LONG)]
    rig.lock(b"running")
    assert rig.claim(LONG, own) is None


@pytest.mark.parametrize(("ram", "is_claimed"), [(0, False), (1 << 20, True)])
def test_a_claim_overwrites_no_content_that_would_be_lost(ram: int, is_claimed: bool) -> None:
    rig = Rig(n_slots=1, ram=ram)
    rig.leave(LONG)
    assert (rig.claim(b"another beginning") is not None) == is_claimed
    assert (rig.holds(0) == LONG) != is_claimed


def test_a_copy_that_fails_leaves_an_empty_slot_to_the_claim() -> None:
    rig = Rig(n_slots=2)
    rig.leave(LONG + b"a" * 100)
    rig.decoder.bad_restores = {0: "short"}
    slot = rig.claim(LONG[:60] + b"new")
    assert slot is not None
    assert (rig.holds(slot.index), rig.cells.n_lost) == (b"", 1)
