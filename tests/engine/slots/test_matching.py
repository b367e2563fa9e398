"""Prefix matching by itself: slots are filled by hand, nothing is placed, one rule a test."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.backend.tokens import common_prefix
from ggufd.engine.kv_store.host_cache import HostCache
from ggufd.engine.kv_store.state_file import KeptState
from ggufd.engine.messages.events import CacheDifference
from ggufd.engine.messages.requests import EVERYBODYS, CacheScope
from ggufd.engine.slots.chunk_reuse import Move
from ggufd.engine.slots.matching import PrefixMatcher
from tests.support.fakes.slot_rig import CHUNKS, SlotRig, ids

LONG = bytes(range(1, 101))


class Rig(SlotRig):
    """Slots filled by hand, and a matcher over them and a host cache."""

    def __init__(self, n_slots: int = 4, *, n_cache_reuse: int = 0, **decoder: object) -> None:
        super().__init__(n_slots, **decoder)
        self.host = HostCache(10_000)
        self.matcher = PrefixMatcher(self.decoder, self.table, self.host, CHUNKS, n_cache_reuse=n_cache_reuse)

    def save(self, tokens: bytes, cache_scope: CacheScope = EVERYBODYS) -> None:
        """Host RAM has these tokens."""
        self.host.insert(KeptState(ids(tokens), np.zeros(len(tokens), np.uint8), cache_scope))

    def difference(self, prompt: bytes, **changes: object) -> CacheDifference | None:
        return self.matcher.difference(self.make(prompt, **changes))


small = st.lists(st.integers(0, 2), max_size=40)


@given(small, small, small)
def test_common_prefix_is_the_longest_common_beginning(stem: list[int], a: list[int], b: list[int]) -> None:
    left, right = array("i", stem + a), array("i", stem + b)
    n = common_prefix(left, right)
    assert n >= len(stem)
    assert left[:n] == right[:n]
    assert n in (len(left), len(right)) or left[n] != right[n]
    assert common_prefix(right, left) == n


# --- slots ------------------------------------------------------------------------------------------------------------


def test_the_last_token_of_a_prompt_is_always_computed_again() -> None:
    rig = Rig()
    rig.keep(1, LONG)
    best = rig.matcher.match(rig.make(LONG))[0]
    assert (best.slot.index, best.n_common) == (1, len(LONG) - 1)


def test_matches_come_longest_first_from_idle_and_running_slots() -> None:
    rig = Rig()
    rig.keep(0, b"a" * 50)
    rig.run(2, b"a" * 60 + LONG, 70)
    sequence = rig.make(b"a" * 100)
    found = [(match.slot.index, match.n_common) for match in rig.matcher.match(sequence)]
    assert found == [(2, 60), (0, 50), (1, 0), (3, 0)]
    assert rig.matcher.longest(sequence) == 60


def test_a_running_slot_offers_only_what_it_has_computed() -> None:
    rig = Rig()
    rig.run(0, LONG, 37)
    assert rig.matcher.longest(rig.make(LONG)) == 37


def test_prompt_logprobs_reuse_nothing() -> None:
    rig = Rig()
    rig.keep(0, LONG)
    assert rig.matcher.longest(rig.make(LONG, prompt_logprobs=True)) == 0


def test_moved_keys_match_nothing_until_they_are_rotated() -> None:
    rig = Rig()
    slot = rig.keep(0, LONG)
    slot.is_shifted = True
    assert rig.matcher.longest(rig.make(LONG)) == 0
    rig.cells.note_decode()
    assert rig.matcher.longest(rig.make(LONG)) == 99


def test_a_cache_that_cannot_trim_matches_whole_or_not_at_all() -> None:
    rig = Rig(can_trim=False)
    rig.keep(0, LONG)
    best = [rig.matcher.longest(rig.make(prompt)) for prompt in (LONG + b"x", LONG, LONG[:50] + b"x")]
    assert best == [len(LONG), 0, 0]


def test_a_copy_that_cannot_be_cut_matches_from_its_fixed_part_on() -> None:
    rig = Rig(copies_all=False)
    slot = rig.keep(0, LONG)
    slot.n_fixed = 60
    assert [rig.matcher.longest(rig.make(LONG[:n] + b"x")) for n in (59, 60, 80)] == [0, 60, 80]


def test_a_scope_reuses_its_own_only() -> None:
    rig = Rig()
    rig.keep(0, LONG, cache_namespace="them")
    assert rig.matcher.longest(rig.make(LONG, cache_namespace="me")) == 0
    assert rig.matcher.longest(rig.make(LONG, cache_namespace="them")) == len(LONG) - 1
    assert [match.slot.index for match in rig.matcher.in_scope(ids(LONG), CacheScope("them"))] == [0]


def test_a_scope_lists_what_cannot_be_reused_too() -> None:
    rig = Rig(can_trim=False)
    rig.keep(0, LONG)
    found = {match.slot.index: match.n_common for match in rig.matcher.in_scope(ids(LONG[:50]), CacheScope())}
    assert found == {0: 50, 1: 0, 2: 0, 3: 0}


# --- waiting for a leader ---------------------------------------------------------------------------------------------


def test_who_shares_much_with_a_prompt_under_way_waits() -> None:
    rig = Rig()
    leader = rig.run(0, LONG + b"one", 0)
    follower = rig.make(LONG + b"two")
    assert rig.matcher.should_wait(follower)
    rig.compute(leader)
    assert not rig.matcher.should_wait(follower)


@pytest.mark.parametrize("n_shared", [10, 31])
def test_who_shares_little_does_not_wait(n_shared: int) -> None:
    rig = Rig()
    rig.run(0, LONG, 0)
    assert not rig.matcher.should_wait(rig.make(LONG[:n_shared] + b"zzzz"))


def test_who_finds_as_much_in_another_slot_does_not_wait() -> None:
    rig = Rig()
    rig.keep(0, LONG)
    rig.run(1, LONG + b"one" * 20, 0)
    assert not rig.matcher.should_wait(rig.make(LONG + b"two"))


def test_nobody_waits_for_a_prompt_whose_logprobs_are_wanted() -> None:
    rig = Rig()
    rig.run(0, LONG + b"one", 0, prompt_logprobs=True)
    assert not rig.matcher.should_wait(rig.make(LONG + b"two"))


def test_nobody_waits_for_what_is_computed_already_and_only_cannot_be_read_yet() -> None:
    rig = Rig()
    rig.run(0, LONG, 60)
    follower = rig.make(LONG[:50] + b"two")
    rig.table.slots[0].is_shifted = True
    assert rig.matcher.longest(follower) == 0
    assert not rig.matcher.should_wait(follower)


def test_nobody_waits_for_what_cannot_be_taken() -> None:
    rig = Rig(can_trim=False)
    rig.run(0, LONG + b"one", 0)
    assert not rig.matcher.should_wait(rig.make(LONG + b"two"))


def test_nobody_waits_for_what_another_scope_computes() -> None:
    rig = Rig()
    rig.run(0, LONG, 40, cache_namespace="them")
    assert rig.matcher.should_wait(rig.make(LONG, cache_namespace="them"))
    assert not rig.matcher.should_wait(rig.make(LONG, cache_namespace="me"))


# --- chunks further on ------------------------------------------------------------------------------------------------


def test_chunks_are_moved_only_where_that_is_on_and_a_prefix_is_shared() -> None:
    prompt = LONG[:20] + LONG[50:]
    for n_cache_reuse, n_prefix, moves in ((0, 20, []), (8, 0, []), (8, 20, [Move(50, 20, 49)])):
        rig = Rig(n_cache_reuse=n_cache_reuse)
        assert rig.matcher.moves(rig.keep(0, LONG), rig.make(prompt), n_prefix) == moves


def test_chunks_are_not_moved_where_keys_cannot_be_rotated() -> None:
    rig = Rig(n_cache_reuse=8, copies_all=False)
    assert not rig.decoder.can_shift
    assert rig.matcher.moves(rig.keep(0, LONG), rig.make(LONG[:20] + LONG[50:]), 20) == []


# --- kept states ------------------------------------------------------------------------------------------------------


def test_the_longest_kept_state_of_the_scope_is_found() -> None:
    rig = Rig()
    rig.save(LONG[:50] + b"x")
    rig.save(LONG[:70] + b"x")
    rig.save(LONG, CacheScope("them"))
    best = rig.matcher.best_kept(rig.make(LONG))
    assert best is not None
    assert bytes(best.tokens.tolist()) == LONG[:70] + b"x"


@pytest.mark.parametrize(("in_slot", "is_better"), [(68, True), (69, False)])
def test_a_kept_state_must_have_more_than_a_slot_by_what_a_restore_is_worth(in_slot: int, is_better: bool) -> None:
    rig = Rig()
    rig.save(LONG)
    rig.keep(0, LONG[:in_slot])
    assert (rig.matcher.best_kept(rig.make(LONG + b"x")) is not None) == is_better


def test_where_a_prompt_parts_from_all_that_was_kept() -> None:
    rig = Rig(can_trim=False)
    assert rig.matcher.n_parted(rig.make(LONG)) == 0
    rig.keep(0, LONG[:30] + b"x")
    assert rig.matcher.n_parted(rig.make(LONG)) == 30
    rig.save(LONG[:40] + b"x")
    assert rig.matcher.n_parted(rig.make(LONG)) == 40


# --- explanation ------------------------------------------------------------------------------------------------------


def test_an_empty_cache_differs_from_nothing() -> None:
    assert Rig().difference(LONG) is None


@pytest.mark.parametrize("prompt", [LONG + b"more", LONG, LONG[:60]], ids=["longer", "the same", "shorter"])
def test_what_goes_on_or_ends_within_a_slot_differs_nowhere(prompt: bytes) -> None:
    rig = Rig()
    rig.keep(0, LONG)
    assert rig.difference(prompt) is None


def test_the_first_difference_has_what_the_slot_holds_there() -> None:
    rig = Rig()
    rig.keep(0, LONG)
    assert rig.difference(LONG[:70] + b"other") == CacheDifference(70, tuple(LONG[70:86]))
    assert rig.difference(LONG[:-3] + b"other") == CacheDifference(97, tuple(LONG[-3:]))


def test_the_longest_match_is_told_also_where_it_is_too_short_to_be_reused() -> None:
    rig = Rig()
    rig.keep(0, b"xyz" + LONG)
    rig.keep(1, b"xab" + LONG)
    assert rig.difference(b"xyw" + LONG[::-1]) == CacheDifference(2, tuple((b"z" + LONG)[:16]))


def test_of_equal_matches_the_askers_own_is_told_then_the_latest() -> None:
    rig = Rig()
    rig.keep(0, LONG[:50] + b"mine", person="me")
    rig.keep(1, LONG[:50] + b"older", person="them")
    rig.keep(2, LONG[:50] + b"later", person="them")
    assert rig.difference(LONG[:50] + b"x", person="me") == CacheDifference(50, tuple(b"mine"))
    assert rig.difference(LONG[:50] + b"x", person="them") == CacheDifference(50, tuple(b"later"))


def test_anothers_text_is_never_told() -> None:
    rig = Rig()
    rig.keep(0, LONG, person="them")
    assert rig.difference(LONG[:70] + b"other", person="me") == CacheDifference(70, None)


def test_another_scope_is_not_explained() -> None:
    rig = Rig()
    rig.keep(0, LONG, cache_namespace="them", person="me")
    assert rig.difference(LONG[:70] + b"x", cache_namespace="me", person="me") is None
