"""KV cells of the slots: every read, write, copy, move and trim of them, with the slot table kept in step.

Each operation that writes ends with a check of llama.cpp's own count of tokens: a restored state that is too short
raises `EngineFailure` before anything is computed on top of it.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ggufd.engine.backend.interfaces import Decoder
from ggufd.engine.kv_store.state_file import KeptState
from ggufd.engine.sequence.sequence import SequenceState
from ggufd.engine.slots.chunk_reuse import Move
from ggufd.engine.slots.copy_costs import CopyCosts
from ggufd.engine.slots.slot_table import Slot, SlotTable
from ggufd.errors import EngineFailure
from ggufd.llama.context.batch import State

logger = logging.getLogger(__name__)


class _SlotReading(NamedTuple):
    """A state that was read for a copy, and the content of the slot that it is the state of."""

    slot: int
    last_used: int
    n_computed: int
    state: State


class KVCells:
    """The cells of `decoder`, for the slots of `table`. Copies are timed by `clock`, in seconds."""

    def __init__(self, decoder: Decoder, table: SlotTable, costs: CopyCosts, clock: Callable[[], float]) -> None:
        self._decoder = decoder
        self._table = table
        self._costs = costs
        self._clock = clock
        self._reading: _SlotReading | None = None
        self.n_lost = 0
        """Contents of slots that were dropped because they could not be trusted."""

    # --- whole states -------------------------------------------------------------------------------------------------

    def read(self, slot: Slot) -> State:
        """The KV state of a slot that is readable. Raises `EngineFailure`."""
        return self._decoder.get_state(slot.index)

    def write(self, slot: Slot, tokens: array[int], state: State) -> None:
        """Replace the content of an idle slot by the state of `tokens`. Raises `EngineFailure`."""
        self._decoder.set_state(slot.index, state)
        slot.tokens = tokens
        self._note_written(slot)
        self._table.touch(slot)
        self.check(slot)

    def restore(self, slot: Slot, kept: KeptState) -> None:
        """Replace the content of an idle slot by a kept state, whose owner it has then. Raises `EngineFailure`."""
        start_s = self._clock()
        self.write(slot, kept.tokens[:], kept.state)
        slot.cache_scope, slot.person, slot.chat = kept.cache_scope, kept.person, kept.chat
        self._costs.note_copy(len(kept.state), len(kept.tokens), self._clock() - start_s)

    def copy(self, source: Slot, target: Slot) -> None:
        """Clone the content of `source` into the idle `target`; one reading serves all copies of the same content."""
        start_s = self._clock()
        content = source.index, source.last_used, source.n_computed
        if self._reading is None or self._reading[:3] != content:
            self._reading = _SlotReading(*content, self.read(source))
        state = self._reading.state
        self.write(target, source.computed[:], state)
        self._costs.note_copy(len(state), source.n_computed, self._clock() - start_s)

    def swap(self, running: Slot, idle: Slot) -> None:
        """Exchange the contents of a running slot and an idle one, and with them what runs where."""
        start_s = self._clock()
        moving = self.read(running)
        staying = self.read(idle) if idle.n_computed else None
        n_tokens = running.n_computed + idle.n_computed
        self._decoder.set_state(idle.index, moving)
        if staying is None:
            self.trim(running, 0)
        else:
            self._decoder.set_state(running.index, staying)
        self._table.exchange(running, idle)
        self._note_written(running)
        self._note_written(idle)
        n_bytes = len(moving) + (len(staying) if staying is not None else 0)
        self._costs.note_copy(n_bytes, n_tokens, self._clock() - start_s)
        self.check(running)
        self.check(idle)

    def release_copies(self) -> None:
        """Free the state that copies were made from: it is stale after the next decode."""
        self._reading = None

    def _note_written(self, slot: Slot) -> None:
        """A state that was written may be one that cannot be cut."""
        slot.n_fixed = 0 if self._decoder.copies_all else slot.n_computed

    # --- parts of a slot ----------------------------------------------------------------------------------------------

    def trim(self, slot: Slot, n_keep: int) -> int:
        """Drop all but the first `n_keep` tokens, or all where the model cannot; how many are left."""
        if n_keep >= max(1, slot.n_fixed) and self._decoder.trim(slot.index, n_keep):
            return n_keep
        self._decoder.trim(slot.index, 0)
        slot.n_fixed = 0
        return 0

    def rewind(self, sequence: SequenceState) -> None:
        """Trim a running slot to the tokens of its sequence, and leave at least one of those to be computed.

        After a failed decode, or when the last tokens were taken back or not accepted.
        """
        slot = self._table.slot_of(sequence)
        sequence.n_past = self.trim(slot, min(sequence.n_past, len(sequence.tokens) - 1))
        self.check(slot)

    def reset(self, sequence: SequenceState) -> None:
        """Empty a running slot whose content is in doubt: all of it is computed again."""
        sequence.n_past = self.trim(self._table.slot_of(sequence), 0)
        sequence.prompt_logprobs.clear()

    def move(self, slot: Slot, moves: list[Move]) -> None:
        """Move tokens towards the beginning, the last of them to the new end of the slot."""
        for move in moves:
            self._decoder.move(slot.index, move.source, move.target, move.n)
        slot.is_shifted = True
        self._decoder.trim(slot.index, moves[-1].target + moves[-1].n)

    def shift(self, sequence: SequenceState, start: int, n: int) -> None:
        """Context shift: drop `n` tokens of a running sequence from `start` on, and move up what is behind them."""
        n_behind = sequence.n_past - start - n
        if n_behind > 0:
            self.move(self._table.slot_of(sequence), [Move(start + n, start, n_behind)])
        sequence.drop(start, n)
        self.rewind(sequence)

    def extend(self, slot: Slot, tokens: array[int]) -> None:
        """Add tokens to an idle slot that were just computed in it."""
        slot.tokens.extend(tokens)
        self._table.touch(slot)
        self.check(slot)

    def note_decode(self) -> None:
        """A decode has rotated the keys that were moved."""
        for slot in self._table.slots:
            slot.is_shifted = False

    # --- eviction -----------------------------------------------------------------------------------------------------

    def evict(self, slot: Slot) -> None:
        """Empty an idle slot."""
        if not slot.is_idle:
            raise EngineFailure(f"slot {slot.index} is running and cannot be evicted")
        self.trim(slot, 0)
        slot.tokens = array("i")
        slot.last_used = 0

    def lose(self, slot: Slot, error: EngineFailure) -> None:
        """Evict a slot whose content cannot be trusted, or could not be restored: it is computed anew when wanted."""
        logger.warning("a kept state is dropped, and computed anew when it is wanted: %s", error)
        self.n_lost += 1
        self.evict(slot)

    # --- integrity ----------------------------------------------------------------------------------------------------

    def check(self, slot: Slot) -> None:
        """Raise `EngineFailure` unless llama.cpp counts as many tokens in a slot as the table."""
        n_past = self._decoder.n_past(slot.index)
        if n_past != slot.n_computed:
            raise EngineFailure(f"slot {slot.index} holds {n_past} tokens, {slot.n_computed} were expected")

    def violations(self) -> Iterator[str]:
        """Where the table and llama.cpp disagree."""
        for slot in self._table.slots:
            n_past = self._decoder.n_past(slot.index)
            if n_past != slot.n_computed:
                yield f"slot {slot.index} holds {n_past} tokens instead of {slot.n_computed}"
