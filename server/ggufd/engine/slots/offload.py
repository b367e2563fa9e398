"""KV states beyond the slots: saved to host RAM and disk before they are overwritten, and restored from there.

For a model whose cache cannot be cut (`checkpoints`), states are saved on the way through a prompt, too.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable, Collection

from ggufd.engine.backend.interfaces import Decoder
from ggufd.engine.kv_store.disk_cache import Fetch
from ggufd.engine.kv_store.host_cache import HostCache
from ggufd.engine.kv_store.state_file import KeptState
from ggufd.engine.messages.requests import CacheScope
from ggufd.engine.sequence.sequence import SequenceState
from ggufd.engine.slots.cells import KVCells
from ggufd.engine.slots.checkpoints import checkpoints_of
from ggufd.engine.slots.copy_costs import CopyCosts
from ggufd.engine.slots.matching import PrefixMatcher
from ggufd.engine.slots.slot_table import Slot, SlotTable
from ggufd.errors import EngineFailure, InvalidRequest

_UNNOTICED = 20
"""A save that takes this much less than the prefill before which it is done costs nothing."""

_MIN_SAVED_TOKENS = 64
"""Less than this is computed again sooner than it is worth a place in host RAM."""


class Offload:
    """Moves states between the slots of `table` and `host`. `message_ends` are the tokens that end a message."""

    def __init__(
        self,
        decoder: Decoder,
        table: SlotTable,
        cells: KVCells,
        matcher: PrefixMatcher,
        host: HostCache,
        costs: CopyCosts,
        clock: Callable[[], float],
        message_ends: Collection[int] = (),
    ) -> None:
        self._n_ctx = decoder.n_ctx
        self._makes_checkpoints = not decoder.copies_all and host.max_bytes > 0
        self._table = table
        self._cells = cells
        self._matcher = matcher
        self._host = host
        self._costs = costs
        self._clock = clock
        self._message_ends = message_ends
        self.n_evicted = 0
        self.n_restored = 0
        self.n_read = 0

    # --- save ---------------------------------------------------------------------------------------------------------

    def save(self, slot: Slot) -> None:
        """Save an idle slot that is about to be overwritten, unless host RAM has its content or it cannot be read.

        What background work left would push out what people come back to.
        """
        is_worth_it = slot.n_computed >= _MIN_SAVED_TOKENS and not slot.is_background
        if self._host.max_bytes == 0 or not is_worth_it or not slot.is_readable:
            return
        if not self._host.holds(slot.tokens, slot.cache_scope):
            start_s = self._clock()
            try:
                state = self._cells.read(slot)
            except EngineFailure as error:
                self._cells.lose(slot, error)
                return
            self._costs.note_save(slot.n_computed, self._clock() - start_s)
            self._host.insert(KeptState(slot.tokens[:], state, slot.cache_scope, slot.person, slot.chat))

    def make_room(self, slot: Slot) -> None:
        """Save an idle slot, and count its content, if there is one, as evicted."""
        self.save(slot)
        self.n_evicted += slot.n_computed > 0

    def is_saved(self, slot: Slot) -> bool:
        """Whether an idle slot may be overwritten without a loss, after saving it if need be."""
        self.save(slot)
        is_worthless = slot.n_computed < _MIN_SAVED_TOKENS or slot.is_background
        return is_worthless or self._host.holds(slot.tokens, slot.cache_scope)

    def save_next(self) -> None:
        """Save the next victim while the engine is idle, so that the request that evicts it need not wait for that."""
        if self._table.idle and all(slot.n_computed for slot in self._table.idle):
            self.save(self._table.victim())

    def save_ahead(self, sequence: SequenceState) -> None:
        """The same before a prefill that is so long that nobody notices it."""
        if self._table.idle:
            save_s = self._costs.save_s(self._table.victim().n_computed)
            if save_s is not None and self._costs.prefill_s(sequence.n_uncomputed) >= _UNNOTICED * save_s:
                self.save_next()

    def keep_suspended(self, sequence: SequenceState, slot: Slot) -> None:
        """Let the state that a suspended sequence took along serve other prompts that begin alike."""
        if sequence.is_deterministic:
            # The state has its answer too, of which nothing is reused.
            return
        if sequence.state is not None and slot.n_computed >= _MIN_SAVED_TOKENS and not sequence.is_background:
            self._host.insert(KeptState(slot.tokens[:], sequence.state, slot.cache_scope, slot.person, slot.chat))

    def close(self, timeout_s: float) -> None:
        """Write what idle slots and host RAM hold to disk, as far as the time allows."""
        if self._host.has_disk:
            for slot in sorted(self._table.idle, key=lambda slot: slot.last_used):
                self.save(slot)
            self._host.close(timeout_s)

    # --- restore ------------------------------------------------------------------------------------------------------

    def fetch(self, sequence: SequenceState) -> Fetch | None:
        """Begin to read the state from disk with a longer common prefix than slots and host RAM have; None without."""
        if not self._host.has_disk or sequence.request.prompt_logprobs:
            return None
        n_known = self._matcher.longest(sequence)
        return self._host.fetch(sequence.tokens, sequence.request.cache_scope, n_known)

    def restore(self, sequence: SequenceState) -> bool:
        """Restore the best kept state for a prompt into the victim slot, where that saves computing it.

        A state that cannot be restored is dropped, and the next best is tried.
        """
        if self._host.max_bytes == 0 or sequence.request.prompt_logprobs:
            return False
        if sequence.fetch is not None and (kept := sequence.fetch.kept) is not None:
            self._host.insert(kept)
            self.n_read += 1
        sequence.fetch = None
        while (entry := self._matcher.best_kept(sequence)) is not None:
            if self._restore_entry(entry):
                return True
        return False

    def _restore_entry(self, entry: KeptState) -> bool:
        slot = self._table.victim()
        self.make_room(slot)
        try:
            self._cells.restore(slot, entry)
        except EngineFailure as error:
            self._host.drop(entry)
            self._cells.lose(slot, error)
            return False
        self._host.touch(entry)
        self.n_restored += 1
        return True

    def drop(self, kept: KeptState) -> None:
        """Forget a state that could not be restored."""
        self._host.drop(kept)

    def drop_like(self, tokens: array[int], cache_scope: CacheScope, n_least: int) -> None:
        """Forget every state of a cache scope that has at least so many of the first `tokens`."""
        self._host.drop_like(tokens, cache_scope, n_least)

    # --- slot files ---------------------------------------------------------------------------------------------------

    def content(self, slot: Slot) -> KeptState:
        """A copy of an idle slot's content. Raises InvalidRequest for an empty slot and for one with moved keys."""
        if not slot.is_readable:
            raise InvalidRequest(f"slot {slot.index} keeps nothing that could be saved")
        return KeptState(slot.tokens[:], self._cells.read(slot), slot.cache_scope, slot.person, slot.chat)

    def replace(self, slot: Slot, kept: KeptState) -> None:
        """Overwrite an idle slot with a saved one. Raises InvalidRequest where that fails; it may be empty then."""
        if len(kept.tokens) > self._n_ctx:
            n_tokens = len(kept.tokens)
            raise InvalidRequest(f"the saved slot has {n_tokens} tokens, and a slot holds {self._n_ctx} here")
        self.save(slot)
        try:
            self._cells.restore(slot, kept)
        except EngineFailure as error:
            self._cells.evict(slot)
            raise InvalidRequest(f"the saved slot cannot be taken in: {error.message}") from None

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def n_parted(self, sequence: SequenceState) -> int:
        """Where this prompt leaves one that was kept and cannot be cut; 0 where checkpoints are not made."""
        return self._matcher.n_parted(sequence) if self._makes_checkpoints else 0

    def plan_checkpoints(self, sequence: SequenceState, n_parted: int) -> None:
        """Decide where in the prompt of a sequence that was just placed its state will be saved."""
        if self._makes_checkpoints and not (sequence.request.prompt_logprobs or sequence.is_deterministic):
            prompt = sequence.request.prompt
            sequence.checkpoints = checkpoints_of(
                prompt, self._message_ends, sequence.n_past, n_parted, sequence.images.whole
            )

    def keep_checkpoint(self, sequence: SequenceState) -> None:
        """Save the state of a sequence that has come to a checkpoint in its prompt."""
        tokens, cache_scope = sequence.tokens[: sequence.n_past], sequence.request.cache_scope
        if not sequence.is_background and not self._host.holds(tokens, cache_scope):
            slot = self._table.slot_of(sequence)
            # Without it something is computed again some day; nobody has to fail for that.
            with contextlib.suppress(EngineFailure):
                self._host.insert(KeptState(tokens, self._cells.read(slot), cache_scope, slot.person, slot.chat))
