"""Slots and what they keep: match, lock, insert, evict, copies and holes, one rule a test."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.backend.tokens import common_prefix
from ggufd.engine.messages.events import CacheDifference, CacheReport, CacheSource
from ggufd.engine.sequence.sequence import SequenceState
from ggufd.engine.slots.prefix_cache import PrefixCache
from ggufd.errors import EngineFailure
from tests.support.fakes.fake_llama import FakeDecoder, make_request

LONG = bytes(range(1, 101))


class Rig:
    """A cache over a fake context; sequences are run by hand."""

    def __init__(self, n_slots: int = 4, **decoder: object) -> None:
        self.decoder = FakeDecoder(n_slots=n_slots, n_ctx=256, n_batch=256, **decoder)  # type: ignore[arg-type]
        self.cache = PrefixCache(self.decoder, self.decoder.clock)
        self.n_made = 0

    def make(self, prompt: bytes, **changes: object) -> SequenceState:
        self.n_made += 1
        return SequenceState.of(make_request(self.n_made, prompt, **changes), 0, 0.0)

    def lock(self, prompt: bytes, **changes: object) -> SequenceState:
        sequence = self.make(prompt, **changes)
        assert self.cache.lock(sequence)
        self.cache.check_integrity()
        return sequence

    def compute(self, sequence: SequenceState, n: int | None = None) -> None:
        """Compute the next `n` tokens, or all."""
        assert sequence.slot is not None
        end = len(sequence.tokens) if n is None else sequence.n_past + n
        if end > sequence.n_past:
            self.decoder.batch.clear()
            self.decoder.batch.add(sequence.slot, sequence.tokens[sequence.n_past : end], sequence.n_past, 1)
            self.decoder.decode()
            sequence.n_past = end
        self.cache.check_integrity()

    def keep(self, prompt: bytes) -> int:
        """Run a prompt and leave it as cache; the slot it is in."""
        sequence = self.lock(prompt)
        self.compute(sequence)
        slot = sequence.slot
        assert slot is not None
        self.cache.insert(sequence)
        self.cache.check_integrity()
        return slot

    def holds(self, slot: int) -> bytes:
        return bytes(self.decoder.tokens(slot))


small = st.lists(st.integers(0, 2), max_size=40)


@given(small, small, small)
def test_common_prefix_is_the_longest_common_beginning(stem: list[int], a: list[int], b: list[int]) -> None:
    left, right = array("i", stem + a), array("i", stem + b)
    n = common_prefix(left, right)
    assert n >= len(stem)
    assert left[:n] == right[:n]
    assert n in (len(left), len(right)) or left[n] != right[n]
    assert common_prefix(right, left) == n


# --- match ------------------------------------------------------------------------------------------------------------


def test_the_last_token_of_a_prompt_is_always_computed_again() -> None:
    rig = Rig()
    rig.keep(LONG)
    assert rig.cache.match(rig.make(LONG))[0].n_common == len(LONG) - 1


def test_matches_come_longest_first_from_idle_and_running_slots() -> None:
    rig = Rig()
    rig.keep(b"a" * 50)
    running = rig.lock(b"a" * 60 + LONG)
    rig.compute(running, 40)
    found = [match.n_common for match in rig.cache.match(rig.make(b"a" * 100))]
    assert found == sorted(found, reverse=True)
    assert found[0] >= 60


def test_a_running_slot_offers_only_what_it_has_computed() -> None:
    rig = Rig()
    rig.compute(rig.lock(LONG), 37)
    assert rig.cache.match(rig.make(LONG))[0].n_common == 37


def test_prompt_logprobs_reuse_nothing() -> None:
    rig = Rig()
    rig.keep(LONG)
    sequence = rig.lock(LONG, prompt_logprobs=True)
    assert (sequence.n_past, sequence.n_cached) == (0, 0)


def test_a_cache_that_cannot_trim_matches_whole_or_not_at_all() -> None:
    rig = Rig(can_trim=False)
    rig.keep(LONG)
    best = [rig.cache.match(rig.make(prompt))[0].n_common for prompt in (LONG + b"x", LONG, LONG[:50] + b"x")]
    assert best == [len(LONG), 0, 0]


# --- waiting for a leader ---------------------------------------------------------------------------------------------


def test_who_shares_much_with_a_prompt_under_way_waits() -> None:
    rig = Rig()
    leader = rig.lock(LONG + b"one")
    follower = rig.make(LONG + b"two")
    assert rig.cache.should_wait(follower)
    rig.compute(leader)
    assert not rig.cache.should_wait(follower)


@pytest.mark.parametrize("n_shared", [10, 31])
def test_who_shares_little_does_not_wait(n_shared: int) -> None:
    rig = Rig()
    rig.lock(LONG)
    assert not rig.cache.should_wait(rig.make(LONG[:n_shared] + b"zzzz"))


def test_who_finds_as_much_in_another_slot_does_not_wait() -> None:
    rig = Rig()
    rig.keep(LONG)
    rig.lock(LONG + b"one" * 20, prompt_logprobs=True)
    assert not rig.cache.should_wait(rig.make(LONG + b"two"))


def test_nobody_waits_for_what_cannot_be_taken() -> None:
    rig = Rig(can_trim=False)
    rig.lock(LONG + b"one")
    assert not rig.cache.should_wait(rig.make(LONG + b"two"))


# --- lock -------------------------------------------------------------------------------------------------------------


def test_a_slot_is_taken_in_place_when_most_of_it_is_reused() -> None:
    rig = Rig()
    slot = rig.keep(LONG)
    sequence = rig.lock(LONG[:80] + b"new")
    assert (sequence.slot, sequence.n_past, sequence.n_cached) == (slot, 80, 80)
    assert rig.holds(slot) == LONG[:80]


def test_a_long_chat_is_copied_from_not_cut_when_little_of_it_is_shared() -> None:
    rig = Rig()
    slot = rig.keep(LONG + b"a" * 100)
    sequence = rig.lock(LONG[:60] + b"new")
    assert sequence.slot is not None
    assert sequence.slot != slot
    assert rig.holds(sequence.slot) == LONG[:60]
    assert rig.holds(slot) == LONG + b"a" * 100


def test_a_short_prompt_is_copied_from_the_longer_chat_that_it_became() -> None:
    rig = Rig()
    slot = rig.keep(LONG[:20] + b"a" * 30)
    sequence = rig.lock(LONG[:20])
    assert (sequence.slot != slot, sequence.n_cached) == (True, 19)
    assert rig.holds(slot) == LONG[:20] + b"a" * 30


def test_a_long_chat_is_not_copied_for_a_few_tokens_of_it() -> None:
    rig = Rig()
    rig.keep(LONG + b"a" * 100)
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
    rig.cache.prefill_s_per_token = 1e-9
    sequence = rig.lock(LONG + b"second")
    assert (sequence.n_past, rig.decoder.n_copies) == (0, n_copies)


def test_a_few_shared_tokens_take_nobodys_chat() -> None:
    rig = Rig(n_slots=2)
    slot = rig.keep(LONG)
    sequence = rig.lock(LONG[:10] + b"else")
    assert sequence.slot != slot
    assert rig.holds(slot) == LONG


def test_the_least_recent_chat_is_missed_least() -> None:
    rig = Rig(n_slots=3)
    slots = [rig.keep(bytes([65 + i]) * 40) for i in range(3)]
    assert len(set(slots)) == 3
    rig.keep(b"A" * 40 + b"again")
    assert rig.lock(b"stranger").slot == slots[1]


def test_an_empty_slot_comes_before_any_chat_and_beside_those_that_run() -> None:
    rig = Rig(n_slots=6)
    for i in range(3):
        rig.compute(rig.lock(bytes([65 + i]) * 40))
    running = sorted(slot.index for slot in rig.cache.running)
    assert running[-1] - running[0] == 2


def test_no_slot_is_free() -> None:
    rig = Rig(n_slots=1)
    rig.lock(LONG)
    assert not rig.cache.lock(rig.make(b"other"))


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
    rig.cache.release_copies()
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
    rig.cache.release_copies()
    slot = leader.slot
    rig.cache.forget(leader)
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
    assert rig.cache.n_failed_restores == 1
    rig.cache.check_integrity()


def test_a_slot_that_cannot_be_emptied_fails_its_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(n_slots=1)
    monkeypatch.setattr(rig.decoder, "n_past", lambda slot: 3)
    sequence = rig.make(LONG)
    with pytest.raises(EngineFailure, match="holds 3 tokens, 0 were expected"):
        rig.cache.lock(sequence)
    assert sequence.slot is None
    assert len(rig.cache.idle) == 1


# --- insert, evict, forget, rewind ------------------------------------------------------------------------------------


def test_a_slot_keeps_what_was_computed_not_what_was_said() -> None:
    rig = Rig()
    sequence = rig.lock(LONG)
    rig.compute(sequence, 40)
    slot = rig.cache.slots[sequence.slot or 0]
    rig.cache.insert(sequence)
    assert bytes(slot.tokens.tolist()) == LONG[:40]
    assert sequence.slot is None
    rig.cache.check_integrity()


def test_an_evicted_slot_is_empty_here_and_in_the_context() -> None:
    rig = Rig()
    slot = rig.keep(LONG)
    rig.cache.evict(rig.cache.slots[slot])
    assert rig.holds(slot) == b""
    assert rig.lock(LONG).n_cached == 0


def test_a_running_slot_cannot_be_evicted() -> None:
    rig = Rig()
    sequence = rig.lock(LONG)
    with pytest.raises(EngineFailure, match="running"):
        rig.cache.evict(rig.cache.slots[sequence.slot or 0])


def test_what_is_forgotten_is_not_reused() -> None:
    rig = Rig()
    sequence = rig.lock(LONG)
    rig.compute(sequence)
    rig.cache.forget(sequence)
    rig.cache.check_integrity()
    assert rig.lock(LONG).n_cached == 0


@pytest.mark.parametrize(("can_trim", "n_past"), [(True, 97), (False, 0)])
def test_tokens_taken_back_leave_one_to_compute(can_trim: bool, n_past: int) -> None:
    rig = Rig(can_trim=can_trim)
    sequence = rig.lock(LONG)
    rig.compute(sequence)
    del sequence.tokens[98:]
    rig.cache.rewind(sequence)
    assert sequence.n_past == n_past
    rig.cache.check_integrity()


def test_integrity_names_a_slot_that_holds_something_else() -> None:
    rig = Rig()
    slot = rig.keep(LONG)
    rig.decoder.trim(slot, 50)
    with pytest.raises(EngineFailure, match=f"slot {slot} holds 50 tokens instead of 100"):
        rig.cache.check_integrity()


# --- holes ------------------------------------------------------------------------------------------------------------


def running_at(rig: Rig, slots: list[int]) -> dict[int, SequenceState]:
    """Sequences of 50 tokens that run in exactly these slots; idle caches in all others."""
    all_slots = {}
    for i in range(len(rig.cache.slots)):
        sequence = rig.lock(bytes([65 + i]) * 50)
        rig.compute(sequence)
        assert sequence.slot is not None
        all_slots[sequence.slot] = sequence
    for slot, sequence in all_slots.items():
        if slot not in slots:
            rig.cache.insert(sequence)
    return {slot: all_slots[slot] for slot in slots}


def test_neighbours_stay_where_they_are() -> None:
    rig = Rig(n_slots=6)
    running_at(rig, [2, 3, 4])
    for _ in range(100):
        rig.cache.close_holes(1.0)
    assert [slot.index for slot in rig.cache.running] == [2, 3, 4]
    assert rig.decoder.n_copies == 0


def test_a_stray_moves_beside_the_others_and_swaps_with_the_idle_chat() -> None:
    rig = Rig(n_slots=6)
    sequences = running_at(rig, [0, 1, 5])
    stray = rig.holds(5)
    idle = rig.holds(2)
    rig.cache.close_holes(1.0)
    rig.cache.check_integrity()
    assert sequences[5].slot == 2
    assert (rig.holds(2), rig.holds(5)) == (stray, idle)
    assert bytes(rig.cache.slots[5].tokens.tolist()) == idle


def test_a_move_waits_until_the_holes_have_cost_as_much() -> None:
    rig = Rig(n_slots=6)
    running_at(rig, [0, 5])
    # 50 running and 50 idle tokens to move: a second. Half of each step of a tenth is owed to the hole.
    rig.cache._copy_bytes_per_s, rig.cache._bytes_per_token = 400.0, 4.0
    n_steps = 0
    while rig.decoder.n_copies == 0:
        rig.cache.close_holes(0.1)
        n_steps += 1
        assert n_steps < 30
    assert n_steps in (20, 21)


def test_several_strays_come_together_one_move_at_a_time() -> None:
    rig = Rig(n_slots=8)
    sequences = running_at(rig, [0, 2, 4, 6])
    contents = {slot: rig.holds(slot) for slot in sequences}
    for _ in range(50):
        rig.cache.close_holes(10.0)
        rig.cache.check_integrity()
    places = [slot.index for slot in rig.cache.running]
    assert places == list(range(places[0], places[0] + 4))
    for slot, sequence in sequences.items():
        assert sequence.slot is not None
        assert rig.holds(sequence.slot) == contents[slot]


# --- what is told of it -----------------------------------------------------------------------------------------------


def explained(rig: Rig, prompt: bytes, **changes: object) -> CacheReport:
    """What is told of a prompt that is placed now."""
    sequence = rig.lock(prompt, explain_cache=True, **changes)
    rig.compute(sequence)
    rig.cache.insert(sequence)
    assert sequence.cache_report is not None
    return sequence.cache_report


def test_nobody_is_told_who_did_not_ask() -> None:
    assert Rig().lock(LONG).cache_report is None


def test_an_empty_cache_differs_from_nothing() -> None:
    assert explained(Rig(), LONG) == CacheReport(None, None)


@pytest.mark.parametrize("prompt", [LONG + b"more", LONG, LONG[:60]], ids=["longer", "the same", "shorter"])
def test_what_goes_on_or_ends_within_a_slot_differs_nowhere(prompt: bytes) -> None:
    rig = Rig()
    rig.keep(LONG)
    assert explained(rig, prompt) == CacheReport(CacheSource.SAME_SLOT, None)


def test_the_first_difference_has_what_the_slot_held_there() -> None:
    rig = Rig()
    rig.keep(LONG)
    report = explained(rig, LONG[:70] + b"other")
    assert report == CacheReport(CacheSource.SAME_SLOT, CacheDifference(70, tuple(LONG[70:86])))


def test_the_end_of_a_slot_cuts_what_is_told() -> None:
    rig = Rig()
    rig.keep(LONG)
    report = explained(rig, LONG[:-3] + b"other")
    assert report.difference == CacheDifference(97, tuple(LONG[-3:]))


def test_a_copy_is_told_and_a_running_slot_explained() -> None:
    rig = Rig()
    rig.compute(rig.lock(LONG))
    report = explained(rig, LONG[:80] + b"other")
    assert report == CacheReport(CacheSource.COPIED, CacheDifference(80, tuple(LONG[80:96])))


def test_the_longest_match_is_told_also_where_it_is_too_short_to_be_reused() -> None:
    rig = Rig()
    rig.keep(b"xyz" + LONG)
    rig.keep(b"xab" + LONG)
    report = explained(rig, b"xyw" + LONG[::-1])
    assert report == CacheReport(None, CacheDifference(2, tuple((b"z" + LONG)[:16])))


def test_anothers_text_is_never_told() -> None:
    rig = Rig()
    theirs = rig.lock(LONG, asker="them")
    rig.compute(theirs)
    rig.cache.insert(theirs)
    report = explained(rig, LONG[:70] + b"other", asker="me")
    assert report == CacheReport(CacheSource.SAME_SLOT, CacheDifference(70, None))
    # What the slot holds by now is mine.
    report = explained(rig, LONG[:70] + b"third", asker="me")
    assert report.difference == CacheDifference(70, tuple(b"other"))


def test_a_swapped_slot_takes_its_asker_along() -> None:
    rig = Rig(n_slots=6)
    running_at(rig, [0, 1, 5])
    rig.cache.slots[2].asker = "them"
    rig.cache.close_holes(1.0)
    assert [slot.asker for slot in rig.cache.slots] == ["", "", "", "", "", "them"]


# --- namespaces -------------------------------------------------------------------------------------------------------


def test_a_namespace_reuses_its_own_only() -> None:
    rig = Rig()
    theirs = rig.lock(LONG, namespace="them")
    rig.compute(theirs)
    rig.cache.insert(theirs)
    mine = rig.make(LONG, namespace="me")
    assert {match.n_common for match in rig.cache.match(mine)} == {0}
    assert rig.lock(LONG, namespace="me").n_cached == 0
    assert rig.lock(LONG, namespace="them").n_cached == len(LONG) - 1


def test_nobody_waits_for_what_another_namespace_computes() -> None:
    rig = Rig()
    rig.compute(rig.lock(LONG, namespace="them"), 40)
    assert rig.cache.should_wait(rig.make(LONG, namespace="them"))
    assert not rig.cache.should_wait(rig.make(LONG, namespace="me"))


def test_another_namespace_is_not_explained() -> None:
    rig = Rig()
    theirs = rig.lock(LONG, namespace="them", asker="me")
    rig.compute(theirs)
    rig.cache.insert(theirs)
    assert explained(rig, LONG[:70] + b"x", namespace="me", asker="me") == CacheReport()


def test_a_swapped_slot_takes_its_namespace_along() -> None:
    rig = Rig()
    running_at(rig, [0, 3])
    rig.cache.slots[3].cache_scope = ("them", ())
    rig.cache._swap(rig.cache.slots[3], rig.cache.slots[1])
    assert [slot.cache_scope[0] for slot in rig.cache.slots] == ["", "them", "", ""]
