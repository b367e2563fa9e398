"""The slots of the context: who runs in which, what idle ones keep, and which prefix a newcomer reuses.

A slot is locked while a sequence runs in it and keeps the computed tokens as cache when that ends:

    tokens of a running sequence   [0, n_past) in the slot   [n_past, len) not yet
    tokens of an idle slot         [0, len) in the slot

Matching compares tokens, never hashes, and stays within a cache_scope: other adapters compute other states, and the
time of a first token tells whether somebody has asked the same before. Every reuse, copy and move ends with a check of
llama.cpp's own count.

Running slots should be neighbours: rows of consecutive slots are computed together, a hole costs a whole pass over
the weights (measured: 4 rows of neighbours 9.9 ms, of slots 0, 4, 8, 12 17.8 ms). Moving a sequence costs a copy of
its state. `close_holes` pays for holes as long as their cost so far is below that of a move, and then moves: never
more than twice the best in hindsight.
"""

from __future__ import annotations

import contextlib
import logging
import time
from array import array
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ggufd.engine.backend.interfaces import Decoder
from ggufd.engine.backend.tokens import common_prefix
from ggufd.engine.kv_store.disk_cache import Fetch, open_disk_cache
from ggufd.engine.kv_store.host_cache import HostCache
from ggufd.engine.kv_store.state_file import KeptState
from ggufd.engine.messages.config import DiskPlace
from ggufd.engine.messages.events import CacheDifference, CacheReport, CacheSource
from ggufd.engine.messages.requests import CacheScope
from ggufd.engine.sequence.sequence import SequenceState
from ggufd.engine.slots.chunk_reuse import Move, plan_moves
from ggufd.engine.slots.snapshots import marks_of
from ggufd.errors import EngineFailure, InvalidRequest
from ggufd.llama.context.batch import State

logger = logging.getLogger(__name__)

_MIN_SHARED_TOKENS = 32
"""A shorter prefix is worth neither the rest of a longer chat nor waiting for."""

_FIRST_COPY_PER_PREFILL = 0.05
"""Copying a token beside computing it, as long as no copy was measured (600 tokens: 11 ms beside 900 ms)."""

_UNNOTICED = 20
"""A save that takes this much less than the prefill before which it is done costs nothing."""

_N_EXPLAINED = 16
"""So many tokens are told of what a slot holds where a prompt differs from it."""

_MIN_SAVED_TOKENS = 64
"""Less than this is computed again sooner than it is worth a place in host RAM."""

_FIRST_COPY_BYTES_PER_S = 1e9
_FIRST_PREFILL_S_PER_TOKEN = 2e-3
_SMOOTHING = 0.2


@dataclass(slots=True)
class Slot:
    """One stream. `tokens` is what an idle slot keeps; a running one's are its sequence's first `n_past`.

    Its first `n_fixed` tokens are there as a whole or not at all: they came from a copy that cannot be cut back.
    """

    index: int
    tokens: array[int] = field(default_factory=lambda: array("i"))
    sequence: SequenceState | None = None
    last_used: int = 0
    cache_scope: CacheScope = ("", ())
    asker: str = ""
    n_fixed: int = 0

    @property
    def is_idle(self) -> bool:
        return self.sequence is None

    @property
    def computed(self) -> array[int]:
        """The tokens whose state is in the slot."""
        return self.tokens if self.sequence is None else self.sequence.tokens[: self.sequence.n_past]

    @property
    def n_computed(self) -> int:
        return len(self.tokens) if self.sequence is None else self.sequence.n_past


class PrefixMatch(NamedTuple):
    """A slot, and how many tokens of a prompt its beginning holds already."""

    slot: Slot
    n_common: int


def _is_reading(leader: SequenceState) -> bool:
    """Whether others may wait for the prompt that this one computes right now."""
    return leader.is_reading and not leader.request.prompt_logprobs


def _source(sequence: SequenceState, *, is_copy: bool) -> CacheSource | None:
    """Where the reused tokens of a sequence that was just placed were."""
    if sequence.n_moved:
        return CacheSource.MOVED
    if sequence.n_cached == 0:
        return None
    return CacheSource.COPIED if is_copy else CacheSource.SAME_SLOT


class PrefixCache:
    """Places sequences into the slots of `decoder`. Rates are measured as they occur; times in seconds.

    `cache_ram_bytes` of host RAM keep what a slot held when somebody else takes it over; what has to leave it goes to
    `disk`.
    `n_cache_reuse` > 0 lets runs of at least so many tokens be moved to where a trimmed history has them now.
    """

    def __init__(
        self,
        decoder: Decoder,
        clock: Callable[[], float] = time.perf_counter,
        *,
        n_cache_reuse: int = 0,
        cache_ram_bytes: int = 0,
        message_ends: Collection[int] = (),
        disk: DiskPlace | None = None,
    ) -> None:
        self._decoder = decoder
        self._message_ends = message_ends
        self._n_cache_reuse = n_cache_reuse if decoder.can_shift else 0
        only_whole = not decoder.copies_all
        disk_cache = open_disk_cache(disk, only_whole=only_whole)
        self.host = HostCache(cache_ram_bytes, disk_cache, only_whole=only_whole)
        self._clock = clock
        self.slots = [Slot(i) for i in range(decoder.n_slots)]
        self.prefill_s_per_token = _FIRST_PREFILL_S_PER_TOKEN
        self._copy_bytes_per_s = _FIRST_COPY_BYTES_PER_S
        self._bytes_per_token = 0.0
        self._save_s_per_token = 0.0
        self._hole_debt_s = 0.0
        self._shifted: set[int] = set()
        self._time = 0
        self.n_evicted = 0
        self.n_restored = 0
        self._n_lost = 0
        self._copied: tuple[Slot, int, State] | None = None

    @property
    def n_failed_restores(self) -> int:
        """States that were kept, in a slot, in host RAM or on disk, and could not be used."""
        return self._n_lost + self.host.n_bad_files

    @property
    def running(self) -> list[Slot]:
        return [slot for slot in self.slots if not slot.is_idle]

    @property
    def idle(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.is_idle]

    # --- match ------------------------------------------------------------------------------------------------------

    def match(self, sequence: SequenceState) -> list[PrefixMatch]:
        """For every slot what it could spare this sequence, most first. The last token is always computed again."""
        matches = [PrefixMatch(slot, self._usable(slot, sequence)) for slot in self.slots]
        return sorted(matches, key=lambda match: match.n_common, reverse=True)

    def _usable(self, slot: Slot, sequence: SequenceState) -> int:
        if sequence.request.prompt_logprobs or slot.n_computed == 0 or slot.index in self._shifted:
            return 0
        if slot.cache_scope != sequence.request.cache_scope:
            return 0
        n_common = min(len(sequence.tokens) - 1, common_prefix(slot.computed, sequence.tokens))
        # What cannot drop its tail, or only where it is, is of use only to a prompt that goes on where it ends.
        can_cut = self._decoder.can_trim if slot.is_idle else self._decoder.copies_all
        n_least = slot.n_fixed if can_cut else slot.n_computed
        return n_common if n_common >= n_least else 0

    def should_wait(self, sequence: SequenceState) -> bool:
        """Whether somebody is computing a prefix of this prompt right now, more of it than any slot holds."""
        if sequence.request.prompt_logprobs or not self._decoder.copies_all:
            return False
        best = self.match(sequence)[0].n_common
        limit = len(sequence.tokens) - 1
        for slot in self.running:
            leader = slot.sequence
            assert leader is not None
            if slot.cache_scope == sequence.request.cache_scope and _is_reading(leader):
                promised = min(limit, common_prefix(leader.tokens, sequence.tokens))
                if promised >= best + _MIN_SHARED_TOKENS and promised > leader.n_past:
                    return True
        return False

    # --- lock and insert ----------------------------------------------------------------------------------------------

    def lock(self, sequence: SequenceState) -> bool:
        """Give `sequence` a slot and as much of its prompt as is cheaper to reuse than to compute.

        Sets its `slot`, `n_past` and `n_cached`. False when every slot is running. What cannot be reused after all is
        dropped, and its tokens are computed. Raises `EngineFailure` when not even an empty slot can be had; the
        sequence then has none.
        """
        if not self.idle:
            return False
        n_parted = self._n_parted(sequence)
        was_restored = self._restore(sequence)
        source, target, n_reuse = self._choose(sequence)
        difference = self._difference(sequence) if sequence.request.explain_cache else None
        try:
            self._place(sequence, source, target, n_reuse)
        except EngineFailure as error:
            self._take_back(sequence, target, error)
            self._place_afresh(sequence, target)
        if self._keeps_snapshots and not sequence.request.prompt_logprobs:
            prompt = sequence.request.prompt
            sequence.marks = marks_of(prompt, self._message_ends, sequence.n_past, n_parted)
        if sequence.request.explain_cache:
            is_restored = was_restored and sequence.n_cached > 0
            place = CacheSource.RESTORED if is_restored else _source(sequence, is_copy=source is not target)
            sequence.cache_report = CacheReport(place, difference)
        return True

    def _place_afresh(self, sequence: SequenceState, slot: Slot) -> None:
        """Give a sequence an empty slot. Raises `EngineFailure`."""
        try:
            self._place(sequence, slot, slot, 0)
        except EngineFailure as error:
            self._take_back(sequence, slot, error)
            raise

    def _take_back(self, sequence: SequenceState, slot: Slot, error: EngineFailure) -> None:
        """A sequence was not placed: what its slot holds is in doubt."""
        slot.sequence = sequence.slot = None
        self.release_copies()
        self._lose(slot, error)

    def _lose(self, slot: Slot, error: EngineFailure) -> None:
        """What an idle slot holds, or was about to, cannot be trusted: a later request computes it anew."""
        logger.warning("a kept state is dropped, and computed anew when it is wanted: %s", error)
        self._n_lost += 1
        self.evict(slot)

    @property
    def _keeps_snapshots(self) -> bool:
        return not self._decoder.copies_all and self.host.max_bytes > 0

    def _n_parted(self, sequence: SequenceState) -> int:
        """Where this prompt leaves one that was computed before, which therefore cannot be used."""
        if not self._keeps_snapshots:
            return 0
        cache_scope = sequence.request.cache_scope
        held = [common_prefix(slot.computed, sequence.tokens) for slot in self.slots if slot.cache_scope == cache_scope]
        return max([self.host.longest_common(sequence.tokens, cache_scope), *held])

    def keep_snapshot(self, sequence: SequenceState) -> None:
        """A sequence has come to a mark in its prompt: keep its state as it is now."""
        slot, tokens, cache_scope = (
            self._slot_of(sequence),
            sequence.tokens[: sequence.n_past],
            sequence.request.cache_scope,
        )
        if not self.host.holds(tokens, cache_scope):
            # Without it something is computed again some day; nobody has to fail for that.
            with contextlib.suppress(EngineFailure):
                self.host.insert(KeptState(tokens, self._decoder.get_state(slot.index), cache_scope, slot.asker))

    def fetch(self, sequence: SequenceState) -> Fetch | None:
        """Begin to bring back from disk a chat that neither a slot nor host RAM holds; None when there is none."""
        if not self.host.has_disk or sequence.request.prompt_logprobs:
            return None
        n_known = self.match(sequence)[0].n_common
        return self.host.fetch(sequence.tokens, sequence.request.cache_scope, n_known)

    def close(self, timeout_s: float) -> None:
        """Put on disk what idle slots and host RAM hold, as far as that goes in time."""
        if self.host.has_disk:
            for slot in sorted(self.idle, key=lambda slot: slot.last_used):
                self._save(slot)
            self.host.close(timeout_s)

    def _restore(self, sequence: SequenceState) -> bool:
        """Bring back a chat from host RAM, into the slot that is missed least, when that saves computing it again.

        One that cannot be brought back is dropped, and the next best is tried.
        """
        if self.host.max_bytes == 0 or sequence.request.prompt_logprobs:
            return False
        if sequence.fetch is not None and (kept := sequence.fetch.kept) is not None:
            self.host.insert(kept)
        sequence.fetch = None
        while (entry := self._best_kept(sequence)) is not None:
            if self._bring_back(entry):
                return True
        return False

    def _best_kept(self, sequence: SequenceState) -> KeptState | None:
        """The state in host RAM that saves computing most; None where the slots are as good."""
        found = self.host.match(sequence.tokens, sequence.request.cache_scope)
        if found is None or found[1] < self.match(sequence)[0].n_common + _MIN_SHARED_TOKENS:
            return None
        return found[0]

    def _bring_back(self, entry: KeptState) -> bool:
        slot = self._victim()
        self._save(slot)
        self.n_evicted += slot.n_computed > 0
        try:
            self._fill(slot, entry)
        except EngineFailure as error:
            self.host.drop(entry)
            self._lose(slot, error)
            return False
        self.n_restored += 1
        return True

    def _fill(self, slot: Slot, entry: KeptState) -> None:
        """Replace what an idle slot holds by a kept state."""
        start = self._clock()
        self._decoder.set_state(slot.index, entry.state)
        slot.tokens = entry.tokens[:]
        slot.cache_scope, slot.asker = entry.cache_scope, entry.asker
        self._note_copied(slot)
        self.host.touch(entry)
        self._touch(slot)
        self._measure_copy(len(entry.state), len(entry.tokens), self._clock() - start)
        self._check(slot)

    def content(self, slot: Slot) -> KeptState:
        """A copy of what an idle slot keeps. Raises InvalidRequest when that is nothing, or moved since it was read."""
        if slot.n_computed == 0 or slot.index in self._shifted:
            raise InvalidRequest(f"slot {slot.index} keeps nothing that could be saved")
        return KeptState(slot.tokens[:], self._decoder.get_state(slot.index), slot.cache_scope, slot.asker)

    def replace(self, slot: Slot, kept: KeptState) -> None:
        """Let an idle slot keep this instead. Raises InvalidRequest when that fails; the slot may be empty then."""
        if len(kept.tokens) > self._decoder.n_ctx:
            n_tokens = len(kept.tokens)
            raise InvalidRequest(f"the saved slot has {n_tokens} tokens, and a slot holds {self._decoder.n_ctx} here")
        self._save(slot)
        try:
            self._fill(slot, kept)
        except EngineFailure as error:
            self.evict(slot)
            raise InvalidRequest(f"the saved slot cannot be taken in: {error.message}") from None

    def save_next(self) -> None:
        """Save the slot that the next newcomer will take, while nobody waits: then that one need not wait for it."""
        if self.idle and all(slot.n_computed for slot in self.idle):
            self._save(self._victim())

    def save_ahead(self, sequence: SequenceState) -> None:
        """The same while a long prompt is about to be read, beside which nobody notices it."""
        if self.idle and self._save_s_per_token:
            save_s = self._victim().n_computed * self._save_s_per_token
            if sequence.n_uncomputed * self.prefill_s_per_token >= _UNNOTICED * save_s:
                self.save_next()

    def _save(self, slot: Slot) -> None:
        """Keep in host RAM what an idle slot is about to lose, unless it is kept there already, or cannot be read."""
        if self.host.max_bytes == 0 or slot.n_computed < _MIN_SAVED_TOKENS or slot.index in self._shifted:
            return
        if not self.host.holds(slot.tokens, slot.cache_scope):
            start_s = self._clock()
            try:
                state = self._decoder.get_state(slot.index)
            except EngineFailure as error:
                self._lose(slot, error)
                return
            self._save_s_per_token = (self._clock() - start_s) / slot.n_computed
            self.host.insert(KeptState(slot.tokens[:], state, slot.cache_scope, slot.asker))

    def _difference(self, sequence: SequenceState) -> CacheDifference | None:
        """Where the prompt leaves what the best matching slot holds; of equal ones the asker's own, then the latest."""
        asker = sequence.request.asker
        kept = [
            (common_prefix(slot.computed, sequence.tokens), slot)
            for slot in self.slots
            if slot.n_computed and slot.cache_scope == sequence.request.cache_scope
        ]
        if not kept:
            return None
        n_common, slot = max(kept, key=lambda match: (match[0], match[1].asker == asker, match[1].last_used))
        if n_common in (slot.n_computed, len(sequence.tokens)):
            return None
        held = tuple(slot.computed[n_common : n_common + _N_EXPLAINED])
        return CacheDifference(n_common, held if slot.asker == asker else None)

    def _place(self, sequence: SequenceState, source: Slot, target: Slot, n_reuse: int) -> None:
        if source is not target or 2 * n_reuse < target.n_computed:
            self._save(target)
            self.n_evicted += target.n_computed > 0
        if source is not target and n_reuse:
            self._copy(source, target)
        n_moved = self._move_chunks(target, sequence, n_reuse)
        n_reuse = self._keep(target, n_reuse + n_moved)
        target.tokens = array("i")
        target.sequence = sequence
        target.cache_scope, target.asker = sequence.request.cache_scope, sequence.request.asker
        self._touch(target)
        sequence.slot = target.index
        sequence.n_past = sequence.n_cached = n_reuse
        sequence.n_moved = n_moved
        self._check(target)

    def _move_chunks(self, slot: Slot, sequence: SequenceState, n_prefix: int) -> int:
        """Move what an idle slot holds further on to where the prompt wants it; how many tokens that were."""
        moves = self._plan_moves(slot, sequence, n_prefix)
        n_moved = sum(move.n for move in moves)
        if moves:
            self._move(slot, moves)
            slot.tokens = sequence.tokens[: n_prefix + n_moved]
        return n_moved

    def _move(self, slot: Slot, moves: list[Move]) -> None:
        """Move tokens, the last of them to the new end of the slot; nothing of it can be copied before a decode."""
        for move in moves:
            self._decoder.move(slot.index, move.source, move.target, move.n)
        self._shifted.add(slot.index)
        self._decoder.trim(slot.index, moves[-1].target + moves[-1].n)

    def _plan_moves(self, slot: Slot, sequence: SequenceState, n_prefix: int) -> list[Move]:
        if self._n_cache_reuse == 0 or n_prefix == 0 or sequence.request.prompt_logprobs:
            return []
        limit = len(sequence.tokens) - 1
        return plan_moves(slot.tokens, sequence.tokens, n_prefix, self._n_cache_reuse, limit)

    # --- beginnings that nobody has asked for yet ---------------------------------------------------------------------

    def spare(self, tokens: array[int], cache_scope: CacheScope, asker: str, *, keep: list[Slot]) -> Slot | None:
        """An idle slot for `tokens`, which holds already as many of them as there are in any; None without one.

        Not one of `keep`, and none that holds the only copy of something else.
        """
        able = [slot for slot in self.idle if slot not in keep]
        known = {
            slot.index: common_prefix(slot.computed, tokens) for slot in self.slots if slot.cache_scope == cache_scope
        }
        own = max(able, key=lambda slot: known.get(slot.index, 0), default=None)
        if own is None:
            return None
        if known.get(own.index, 0) < max(_MIN_SHARED_TOKENS, own.n_computed / 2):
            own = min(able, key=lambda slot: (slot.n_computed > 0, slot.last_used))
            if not self._is_saved(own):
                return None
            best = self.slots[max(known, key=lambda index: known[index])] if known else own
            if best is not own and known[best.index] >= _MIN_SHARED_TOKENS:
                self._copy_if_possible(best, own)
        own.tokens = tokens[: self._keep(own, common_prefix(own.tokens, tokens))]
        own.cache_scope, own.asker = cache_scope, asker
        self._touch(own)
        try:
            self._check(own)
        except EngineFailure as error:
            self._lose(own, error)
        return own

    def _copy_if_possible(self, source: Slot, target: Slot) -> None:
        """Clone `source` into an idle slot, which is empty where that cannot be done."""
        try:
            self._copy(source, target)
        except EngineFailure as error:
            self._lose(target, error)
        self.release_copies()

    def _is_saved(self, slot: Slot) -> bool:
        """Whether an idle slot can lose what it holds, because there is nothing, or after saving it."""
        self._save(slot)
        return slot.n_computed < _MIN_SAVED_TOKENS or self.host.holds(slot.tokens, slot.cache_scope)

    def extend(self, slot: Slot, tokens: array[int]) -> None:
        """An idle slot holds these tokens more, which were just computed in it."""
        slot.tokens.extend(tokens)
        self._touch(slot)
        self._check(slot)

    # --- suspend and resume -------------------------------------------------------------------------------------------

    def can_suspend(self, sequence: SequenceState) -> bool:
        """Whether what the sequence computed can be read now: not before the decode that rotates what was moved."""
        return sequence.n_past > 0 and sequence.slot not in self._shifted

    def suspend(self, sequence: SequenceState) -> None:
        """The sequence leaves its slot, and takes along what it computed there, to go on with exactly that."""
        slot = self._slot_of(sequence)
        sequence.state = self._decoder.get_state(slot.index)
        self.insert(sequence)
        if slot.n_computed >= _MIN_SAVED_TOKENS:
            # The same bytes serve others whose prompt begins so; who takes the slot need not read them again.
            self.host.insert(KeptState(slot.tokens[:], sequence.state, slot.cache_scope, slot.asker))

    def resume(self, sequence: SequenceState) -> None:
        """Give a suspended sequence a free slot again, and back what it had, or have it computed anew."""
        assert sequence.state is not None
        slot, had = (
            self._victim(),
            KeptState(sequence.tokens[: sequence.n_past], sequence.state, sequence.request.cache_scope),
        )
        self._save(slot)
        try:
            self._decoder.set_state(slot.index, had.state)
            slot.tokens = had.tokens
            self._note_copied(slot)
            self._check(slot)
        except EngineFailure as error:
            self.host.drop(had)
            self._lose(slot, error)
            sequence.n_past = 0
            sequence.prompt_logprobs.clear()
        slot.tokens, slot.sequence = array("i"), sequence
        slot.cache_scope, slot.asker = sequence.request.cache_scope, sequence.request.asker
        sequence.slot, sequence.state = slot.index, None
        self._touch(slot)

    def insert(self, sequence: SequenceState) -> None:
        """The sequence leaves its slot; what it computed stays there as cache, but not what it only guessed."""
        slot = self._slot_of(sequence)
        if self._decoder.n_past(slot.index) > sequence.n_past:
            self._decoder.trim(slot.index, sequence.n_past)
        slot.tokens = sequence.tokens[: sequence.n_past]
        slot.sequence = None
        sequence.slot = None
        self._touch(slot)

    def rewind(self, sequence: SequenceState) -> None:
        """Leave a running sequence with what its tokens are computed for, at least one of them uncomputed.

        For when the last tokens were taken back, and for when a decode failed half-way.
        """
        slot = self._slot_of(sequence)
        sequence.n_past = self._trim(slot, min(sequence.n_past, len(sequence.tokens) - 1))
        self._check(slot)

    def shift(self, sequence: SequenceState, start: int, n: int) -> None:
        """Drop the `n` tokens from `start` on of a running sequence, and move up what is computed behind them."""
        slot, n_behind = self._slot_of(sequence), sequence.n_past - start - n
        if n_behind > 0:
            self._move(slot, [Move(start + n, start, n_behind)])
        sequence.drop(start, n)
        self.rewind(sequence)

    def evict(self, slot: Slot) -> None:
        """Forget what an idle slot keeps."""
        if not slot.is_idle:
            raise EngineFailure(f"slot {slot.index} is running and cannot be evicted")
        self._trim(slot, 0)
        slot.tokens = array("i")
        slot.last_used = 0

    def forget(self, sequence: SequenceState) -> None:
        """The sequence leaves its slot and nothing of it is kept: its state is in doubt after a failure."""
        slot = self._slot_of(sequence)
        slot.sequence = None
        sequence.slot = None
        self.evict(slot)

    def discard(self, sequence: SequenceState) -> None:
        """The same, and nothing is kept of what may have been the reason: what begins as it does."""
        tokens, cache_scope = sequence.tokens[: sequence.n_past], sequence.request.cache_scope
        self.forget(sequence)
        self._n_lost += 1
        for slot in self.idle:
            if slot.cache_scope == cache_scope and common_prefix(slot.tokens, tokens) >= _MIN_SHARED_TOKENS:
                self.evict(slot)
        self.host.drop_like(tokens, cache_scope, _MIN_SHARED_TOKENS)

    def _choose(self, sequence: SequenceState) -> tuple[Slot, Slot, int]:
        """`(source, target, n_reuse)`: in place where most of an idle slot is reused, else a copy, else afresh."""
        victim = self._victim()
        matches = self.match(sequence)
        best_idle = next(match for match in matches if match.slot.is_idle)
        best = matches[0] if matches[0].n_common > best_idle.n_common else best_idle
        if best.n_common == 0:
            return victim, victim, 0
        if best.slot is victim:
            return best.slot, best.slot, best.n_common
        n_moved = sum(move.n for move in self._plan_moves(best.slot, sequence, best.n_common))
        if best.slot.is_idle and 2 * (best.n_common + n_moved) >= best.slot.n_computed:
            return best.slot, best.slot, best.n_common
        can_copy = self._decoder.copies_all or best.n_common == best.slot.n_computed
        if can_copy and self._copy_s(best.slot.n_computed) < best.n_common * self.prefill_s_per_token:
            return best.slot, victim, best.n_common
        return self._in_place_or_afresh(best_idle, victim)

    def _copy_s(self, n_tokens: int) -> float:
        """Seconds that a copy of so many tokens takes, as far as is known."""
        if self._bytes_per_token == 0:
            return n_tokens * self.prefill_s_per_token * _FIRST_COPY_PER_PREFILL
        return n_tokens * self._bytes_per_token / self._copy_bytes_per_s

    def _in_place_or_afresh(self, best_idle: PrefixMatch, victim: Slot) -> tuple[Slot, Slot, int]:
        if best_idle.n_common >= _MIN_SHARED_TOKENS:
            return best_idle.slot, best_idle.slot, best_idle.n_common
        return victim, victim, 0

    def _victim(self) -> Slot:
        """The idle slot that is missed least: empty ones first, beside the running ones; then the least recent."""
        running = [slot.index for slot in self.running]
        middle = sum(running) / len(running) if running else 0.0
        return min(self.idle, key=lambda slot: (slot.n_computed > 0, slot.last_used, abs(slot.index - middle)))

    def _keep(self, slot: Slot, n_keep: int) -> int:
        """Trim an idle slot to its first `n_keep` tokens; all of it goes when the model cannot do that."""
        return n_keep if slot.n_computed == n_keep > 0 else self._trim(slot, n_keep)

    def _trim(self, slot: Slot, n_keep: int) -> int:
        """Drop all but the first `n_keep` tokens of a slot, or all of them where that cannot be; how many are left."""
        if n_keep >= max(1, slot.n_fixed) and self._decoder.trim(slot.index, n_keep):
            return n_keep
        self._decoder.trim(slot.index, 0)
        slot.n_fixed = 0
        return 0

    def _note_copied(self, slot: Slot) -> None:
        """What the slot holds was copied into it just now."""
        slot.n_fixed = 0 if self._decoder.copies_all else slot.n_computed

    def _copy(self, source: Slot, target: Slot) -> None:
        """Clone all of `source` into the idle `target`; one reading serves all copies of the same content."""
        start = self._clock()
        n = source.n_computed
        if self._copied is None or self._copied[:2] != (source, n):
            self._copied = (source, n, self._decoder.get_state(source.index))
        state = self._copied[2]
        self._decoder.set_state(target.index, state)
        target.tokens = source.computed
        self._note_copied(target)
        self._measure_copy(len(state), n, self._clock() - start)
        self._check(target)

    def note_decode(self) -> None:
        """A decode has rotated what was moved; before it, a copy of such a slot would hold keys of wrong positions."""
        self._shifted.clear()

    def release_copies(self) -> None:
        """Forget the state that copies were made from: it is stale after the next decode."""
        self._copied = None

    # --- holes --------------------------------------------------------------------------------------------------------

    def close_holes(self, last_step_s: float) -> None:
        """Move one running sequence next to the others when their holes have cost as much as a move would."""
        running = self.running
        if not running or running[-1].index - running[0].index < len(running):
            self._hole_debt_s = 0.0
            return
        n_segments = sum(1 for i, slot in enumerate(running) if i == 0 or running[i - 1].index + 1 < slot.index)
        self._hole_debt_s += last_step_s * (n_segments - 1) / n_segments
        stray, target = self._best_move(running)
        n_tokens = stray.n_computed + target.n_computed
        if self._hole_debt_s >= n_tokens * self._bytes_per_token / self._copy_bytes_per_s:
            self._hole_debt_s = 0.0
            sequence = stray.sequence
            assert sequence is not None
            try:
                self._swap(stray, target)
            except EngineFailure as error:
                logger.warning("a sequence could not be moved and is computed again: %s", error)
                self._n_lost += 1
                self._reset(sequence)
                self.evict(target if target.is_idle else stray)

    def _reset(self, sequence: SequenceState) -> None:
        """What its slot holds is in doubt: compute all of it again."""
        sequence.n_past = self._trim(self._slot_of(sequence), 0)
        sequence.prompt_logprobs.clear()

    def _best_move(self, running: list[Slot]) -> tuple[Slot, Slot]:
        """The running slot outside the best window of neighbours, and the idle one inside, with least to copy."""
        width = len(running)
        starts = range(len(self.slots) - width + 1)
        inside = {slot.index for slot in running}
        start = max(starts, key=lambda first: len(inside.intersection(range(first, first + width))))
        window = range(start, start + width)
        strays = [slot for slot in running if slot.index not in window]
        targets = [self.slots[i] for i in window if i not in inside]
        return min(strays, key=lambda s: s.n_computed), min(targets, key=lambda s: s.n_computed)

    def _swap(self, running: Slot, idle: Slot) -> None:
        """Exchange the contents of a running slot and an idle one."""
        start = self._clock()
        moving = self._decoder.get_state(running.index)
        staying = self._decoder.get_state(idle.index) if idle.n_computed else None
        n_tokens = running.n_computed + idle.n_computed
        self._decoder.set_state(idle.index, moving)
        if staying is None:
            self._trim(running, 0)
        else:
            self._decoder.set_state(running.index, staying)
        sequence = running.sequence
        assert sequence is not None
        idle.sequence, running.sequence = sequence, None
        running.tokens, idle.tokens = idle.tokens, array("i")
        running.last_used, idle.last_used = idle.last_used, running.last_used
        running.cache_scope, idle.cache_scope = idle.cache_scope, running.cache_scope
        running.asker, idle.asker = idle.asker, running.asker
        sequence.slot = idle.index
        self._note_copied(running)
        self._note_copied(idle)
        n_bytes = len(moving) + (len(staying) if staying is not None else 0)
        self._measure_copy(n_bytes, n_tokens, self._clock() - start)
        self._check(running)
        self._check(idle)

    def _measure_copy(self, n_bytes: int, n_tokens: int, seconds: float) -> None:
        self._bytes_per_token = n_bytes / max(1, n_tokens)
        rate = n_bytes / max(seconds, 1e-6)
        self._copy_bytes_per_s += _SMOOTHING * (rate - self._copy_bytes_per_s)

    # --- integrity ----------------------------------------------------------------------------------------------------

    def _touch(self, slot: Slot) -> None:
        """The slot was used just now, and holds something else than before: a state read earlier is not its own."""
        if self._copied is not None and self._copied[0] is slot:
            self.release_copies()
        self._time += 1
        slot.last_used = self._time

    def _slot_of(self, sequence: SequenceState) -> Slot:
        if sequence.slot is None:
            raise EngineFailure("a sequence without a slot cannot leave one")
        return self.slots[sequence.slot]

    def _check(self, slot: Slot) -> None:
        n_past = self._decoder.n_past(slot.index)
        if n_past != slot.n_computed:
            raise EngineFailure(f"slot {slot.index} holds {n_past} tokens, {slot.n_computed} were expected")

    def _violations(self) -> Iterator[str]:
        for slot in self.slots:
            n_past = self._decoder.n_past(slot.index)
            if n_past != slot.n_computed:
                yield f"slot {slot.index} holds {n_past} tokens instead of {slot.n_computed}"
            if slot.sequence is not None and slot.sequence.slot != slot.index:
                yield f"slot {slot.index} runs a sequence that is in slot {slot.sequence.slot}"
            if slot.sequence is not None and len(slot.tokens):
                yield f"slot {slot.index} runs and keeps tokens of its own"

    def check_integrity(self) -> None:
        """Raise `EngineFailure` unless the slots and llama.cpp agree on what is where."""
        violations = list(self._violations())
        if violations:
            raise EngineFailure("; ".join(violations))
