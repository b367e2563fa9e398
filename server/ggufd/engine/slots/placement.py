"""Slot placement: which slot a sequence gets, how much of its prompt is reused there, and what stays when it leaves.

A sequence is placed in the idle slot that holds most of its prefix, if little else is lost there; else the prefix is
copied into the victim (`SlotTable.victim`), if a copy is cheaper than prefill; else it starts in the victim afresh.
What is overwritten is saved to host RAM before (`Offload`).
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

from ggufd.engine.backend.interfaces import Decoder
from ggufd.engine.backend.tokens import common_prefix
from ggufd.engine.kv_store.state_file import KeptState
from ggufd.engine.messages.events import CacheClass, CacheDifference, CacheReport, CacheSource
from ggufd.engine.messages.requests import CacheScope
from ggufd.engine.sequence.fixed_chunks import FixedChunks
from ggufd.engine.sequence.sequence import SequenceState
from ggufd.engine.slots.cells import KVCells
from ggufd.engine.slots.copy_costs import CopyCosts
from ggufd.engine.slots.matching import MIN_SHARED_TOKENS, PrefixMatch, PrefixMatcher
from ggufd.engine.slots.offload import Offload
from ggufd.engine.slots.slot_table import Slot, SlotTable
from ggufd.errors import EngineFailure


class _Choice(NamedTuple):
    """The slot whose first `n_reuse` tokens are reused, and the slot that the sequence gets: the same, or a copy."""

    source: Slot
    target: Slot
    n_reuse: int


def _cache_source(sequence: SequenceState, *, is_copy: bool) -> CacheSource | None:
    """Where the reused tokens of a sequence that was just placed were."""
    if sequence.n_moved:
        return CacheSource.MOVED
    if sequence.n_cached == 0:
        return None
    return CacheSource.COPIED if is_copy else CacheSource.SAME_SLOT


def _cache_class(sequence: SequenceState, difference: CacheDifference | None) -> CacheClass:
    """A beginning that nearly all prompts share, as that of a chat template, is nothing."""
    if difference is not None:
        return CacheClass.PARTED if difference.token >= MIN_SHARED_TOKENS else CacheClass.NEW
    return CacheClass.CONTINUED if sequence.n_cached else CacheClass.NEW


class SlotPlacement:
    """Places sequences into the slots of `table`, and takes them out again.

    Of a deterministic one only whole `chunks` of its prompt stay as cache.
    """

    def __init__(
        self,
        decoder: Decoder,
        table: SlotTable,
        cells: KVCells,
        matcher: PrefixMatcher,
        offload: Offload,
        costs: CopyCosts,
        chunks: FixedChunks,
    ) -> None:
        self._chunks = chunks
        self._decoder = decoder
        self._table = table
        self._cells = cells
        self._matcher = matcher
        self._offload = offload
        self._costs = costs

    # --- lock ---------------------------------------------------------------------------------------------------------

    def lock(self, sequence: SequenceState) -> bool:
        """Give `sequence` a slot and as much of its prompt as is cheaper to reuse than to compute.

        Sets its `slot`, `n_past` and `n_cached`. False when every slot is running. A prefix that cannot be reused
        after all is dropped and computed. Raises `EngineFailure` when not even an empty slot can be had; the sequence
        then has none.
        """
        if not self._table.idle:
            return False
        n_parted = self._offload.n_parted(sequence)
        was_restored = self._offload.restore(sequence)
        choice = self._choose(sequence)
        difference = self._matcher.difference(sequence)
        try:
            self._place(sequence, choice)
        except EngineFailure as error:
            self._undo(sequence, choice.target, error)
            self._place_afresh(sequence, choice.target)
        self._offload.plan_checkpoints(sequence, n_parted)
        sequence.cache_class = _cache_class(sequence, difference)
        if sequence.request.explain_cache:
            is_restored = was_restored and sequence.n_cached > 0
            is_copy = choice.source is not choice.target
            source = CacheSource.RESTORED if is_restored else _cache_source(sequence, is_copy=is_copy)
            sequence.cache_report = CacheReport(source, difference)
        return True

    def _choose(self, sequence: SequenceState) -> _Choice:
        """In place where most of an idle slot is reused, else a copy, else afresh."""
        victim = self._table.victim()
        matches = self._matcher.match(sequence)
        best_idle = next(match for match in matches if match.slot.is_idle)
        best = matches[0] if matches[0].n_common > best_idle.n_common else best_idle
        if best.n_common == 0:
            return _Choice(victim, victim, 0)
        if best.slot is victim:
            return _in_place(best)
        n_moved = sum(move.n for move in self._matcher.moves(best.slot, sequence, best.n_common))
        if best.slot.is_idle and 2 * (best.n_common + n_moved) >= best.slot.n_computed:
            return _in_place(best)
        can_copy = self._decoder.copies_all or best.n_common == best.slot.n_computed
        if can_copy and self._costs.copy_s(best.slot.n_computed) < self._costs.prefill_s(best.n_common):
            return _Choice(best.slot, victim, best.n_common)
        return _in_place(best_idle) if best_idle.n_common >= MIN_SHARED_TOKENS else _Choice(victim, victim, 0)

    def _place(self, sequence: SequenceState, choice: _Choice) -> None:
        """Let a sequence run in the chosen slot, with what it reuses there. Raises `EngineFailure`."""
        source, target, n_reuse = choice
        if source is not target or 2 * n_reuse < target.n_computed:
            self._offload.make_room(target)
        if source is not target and n_reuse:
            self._cells.copy(source, target)
        n_moved = self._move_chunks(target, sequence, n_reuse)
        n_reuse = self._keep(target, n_reuse + n_moved)
        self._table.assign(target, sequence)
        sequence.n_past = sequence.n_cached = n_reuse
        sequence.n_moved = n_moved
        self._cells.check(target)

    def _place_afresh(self, sequence: SequenceState, slot: Slot) -> None:
        """Give a sequence an empty slot. Raises `EngineFailure`."""
        try:
            self._place(sequence, _Choice(slot, slot, 0))
        except EngineFailure as error:
            self._undo(sequence, slot, error)
            raise

    def _undo(self, sequence: SequenceState, slot: Slot, error: EngineFailure) -> None:
        """Empty the slot of a sequence that could not be placed: its content is in doubt."""
        slot.sequence = sequence.slot = None
        self._cells.release_copies()
        self._cells.lose(slot, error)

    def _move_chunks(self, slot: Slot, sequence: SequenceState, n_prefix: int) -> int:
        """Chunk reuse within an idle slot; how many tokens were moved."""
        moves = self._matcher.moves(slot, sequence, n_prefix)
        n_moved = sum(move.n for move in moves)
        if moves:
            self._cells.move(slot, moves)
            slot.tokens = sequence.tokens[: n_prefix + n_moved]
        return n_moved

    def _keep(self, slot: Slot, n_keep: int) -> int:
        """Trim an idle slot to its first `n_keep` tokens; all of it goes when the model cannot do that."""
        return n_keep if slot.n_computed == n_keep > 0 else self._cells.trim(slot, n_keep)

    # --- insert and drop ----------------------------------------------------------------------------------------------

    def insert(self, sequence: SequenceState) -> None:
        """Take a sequence out of its slot, which keeps its computed tokens as cached prefix.

        Neither a draft stays there nor tokens that were taken back.
        """
        slot = self._table.slot_of(sequence)
        n_past = min(sequence.n_past, len(sequence.tokens))
        if sequence.is_deterministic:
            n_past = self._chunks.reusable(sequence) if self._decoder.copies_all else 0
        if self._decoder.n_past(slot.index) > n_past:
            n_past = self._cells.trim(slot, n_past)
        self._table.vacate(sequence, sequence.tokens[:n_past])
        self._table.touch(slot)

    def forget(self, sequence: SequenceState) -> None:
        """Take a sequence out of its slot and keep nothing: its state is in doubt after a failure."""
        self._cells.evict(self._table.vacate(sequence, array("i")))

    def discard(self, sequence: SequenceState) -> None:
        """The same, and drop every cached prefix that it may have gone wrong with: all that begin alike."""
        tokens, cache_scope = sequence.tokens[: sequence.n_past], sequence.request.cache_scope
        self.forget(sequence)
        self._cells.n_lost += 1
        for slot, n_common in self._matcher.in_scope(tokens, cache_scope):
            if slot.is_idle and n_common >= MIN_SHARED_TOKENS:
                self._cells.evict(slot)
        self._offload.drop_like(tokens, cache_scope, MIN_SHARED_TOKENS)

    # --- suspend and resume -------------------------------------------------------------------------------------------

    def suspend(self, sequence: SequenceState) -> None:
        """Preempt a sequence: it leaves its slot with a copy of its state. Raises `EngineFailure`."""
        slot = self._table.slot_of(sequence)
        sequence.state = self._cells.read(slot)
        self.insert(sequence)
        self._offload.keep_suspended(sequence, slot)

    def resume(self, sequence: SequenceState) -> None:
        """Give a preempted sequence the victim slot, with the state that it had or else to be computed anew.

        Raises `EngineFailure` for a deterministic one that lost its state: what was taken back of its answer is not
        known any more.
        """
        assert sequence.state is not None
        had = KeptState(sequence.tokens[: sequence.n_past], sequence.state, sequence.request.cache_scope)
        slot = self._table.victim()
        self._offload.save(slot)
        try:
            self._cells.write(slot, had.tokens, had.state)
        except EngineFailure as error:
            self._offload.drop(had)
            self._cells.lose(slot, error)
            if sequence.is_deterministic:
                raise
            sequence.n_past = 0
            sequence.prompt_logprobs.clear()
        self._table.assign(slot, sequence)
        sequence.state = None

    # --- background prefill -------------------------------------------------------------------------------------------

    def claim_idle(self, tokens: array[int], cache_scope: CacheScope, person: str, *, keep: list[Slot]) -> Slot | None:
        """An idle slot for a prompt that nobody has sent yet, trimmed to its longest known prefix; None without one.

        Not one of `keep`, and none whose content would be lost.
        """
        able = [slot for slot in self._table.idle if slot not in keep]
        known = {match.slot.index: match.n_common for match in self._matcher.in_scope(tokens, cache_scope)}
        own = max(able, key=lambda slot: known.get(slot.index, 0), default=None)
        if own is None:
            return None
        if known.get(own.index, 0) < max(MIN_SHARED_TOKENS, own.n_computed / 2):
            own = min(able, key=lambda slot: (slot.n_computed > 0, slot.last_used))
            if not self._offload.is_saved(own):
                return None
            best = self._table.slots[max(known, key=lambda index: known[index])] if known else own
            own.chat = best.chat if known else ""
            if best is not own and known[best.index] >= MIN_SHARED_TOKENS:
                self._copy_if_possible(best, own)
                own.cache_scope = cache_scope
        # What another scope left was computed with other adapters, or read in other pieces.
        n_known = common_prefix(own.tokens, tokens) if own.cache_scope == cache_scope else 0
        own.tokens = tokens[: self._keep(own, n_known)]
        own.cache_scope, own.person, own.is_background = cache_scope, person, False
        self._table.touch(own)
        try:
            self._cells.check(own)
        except EngineFailure as error:
            self._cells.lose(own, error)
        return own

    def _copy_if_possible(self, source: Slot, target: Slot) -> None:
        """Clone `source` into an idle slot, which is empty where that fails."""
        try:
            self._cells.copy(source, target)
        except EngineFailure as error:
            self._cells.lose(target, error)
        self._cells.release_copies()


def _in_place(match: PrefixMatch) -> _Choice:
    return _Choice(match.slot, match.slot, match.n_common)
