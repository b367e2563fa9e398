"""Slots over a fake context, filled by hand: what one part of the prefix cache is tested on, without the others."""

from __future__ import annotations

from array import array

from ggufd.engine.sequence.fixed_chunks import FixedChunks
from ggufd.engine.sequence.sequence import SequenceState
from ggufd.engine.slots.cells import KVCells
from ggufd.engine.slots.copy_costs import CopyCosts
from ggufd.engine.slots.slot_table import Slot, SlotTable
from tests.support.fakes.fake_llama import FakeDecoder, make_request

CHUNKS = FixedChunks(16, 64)
"""Of deterministic requests: short ones, as the prompts of tests are."""


def ids(text: bytes) -> array[int]:
    """The tokens of a text: its bytes."""
    return array("i", list(text))


class SlotRig:
    """A slot table and its cells. A prompt is put into the slot that a test names; nothing is matched or placed."""

    def __init__(self, n_slots: int = 4, *, costs: CopyCosts | None = None, **decoder: object) -> None:
        self.decoder = FakeDecoder(n_slots=n_slots, n_ctx=256, n_batch=256, **decoder)  # type: ignore[arg-type]
        self.costs = costs or CopyCosts()
        self.table = SlotTable(n_slots)
        self.cells = KVCells(self.decoder, self.table, self.costs, self.decoder.clock)
        self._n_made = 0

    def make(self, prompt: bytes, **changes: object) -> SequenceState:
        """A sequence that has no slot yet."""
        self._n_made += 1
        return SequenceState.of(make_request(self._n_made, prompt, **changes), 0, 0.0)

    def run(self, index: int, prompt: bytes, n_past: int | None = None, **changes: object) -> SequenceState:
        """A sequence that runs in the slot, with so many tokens of its prompt computed, or all."""
        sequence = self.make(prompt, **changes)
        self.table.assign(self.table.slots[index], sequence)
        self.compute(sequence, n_past)
        return sequence

    def keep(self, index: int, prompt: bytes, **changes: object) -> Slot:
        """An idle slot that holds a prompt, as the sequence that computed it has left it."""
        slot = self.table.vacate(sequence := self.run(index, prompt, **changes), sequence.tokens[:])
        self.table.touch(slot)
        self.check()
        return slot

    def compute(self, sequence: SequenceState, n: int | None = None) -> None:
        """Compute the next `n` tokens, or all that there are."""
        assert sequence.slot is not None
        end = len(sequence.tokens) if n is None else sequence.n_past + n
        if end > sequence.n_past:
            self.decoder.batch.clear()
            self.decoder.batch.add(sequence.slot, sequence.tokens[sequence.n_past : end], sequence.n_past, 1)
            self.decoder.decode()
            self.cells.note_decode()
            sequence.n_past = end
        self.check()

    def holds(self, index: int) -> bytes:
        """What the fake context has in a slot."""
        return bytes(self.decoder.tokens(index))

    def check(self) -> None:
        """Every slot holds the very tokens that the table says, and as many as the context counts."""
        assert [*self.cells.violations(), *self.table.violations()] == []
        for slot in self.table.slots:
            assert self.decoder.tokens(slot.index) == slot.computed.tolist(), f"slot {slot.index} holds other tokens"
