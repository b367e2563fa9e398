"""The prefix cache as a whole: whatever its parts do one after another, table and context agree."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.sequence.sequence import SequenceState
from ggufd.engine.slots.prefix_cache import PrefixCache
from ggufd.errors import EngineFailure
from tests.support.fakes.fake_llama import FakeDecoder, make_request

STEM = bytes(range(1, 101))
PROMPTS = [STEM + b"one", STEM[:60] + b"two" * 20, STEM[:20] + STEM[50:] + b"x", b"other" * 20, b"short"]

OPERATIONS = ("lock", "compute", "compute", "leave", "suspend", "resume", "compact", "take back", "forget", "discard")
"""What may happen to a sequence; computing is the likeliest."""


class Life:
    """A cache with sequences in it. Each operation is done to the one that `pick` names, if there is one."""

    def __init__(self, **decoder: Any) -> None:
        self.decoder = FakeDecoder(n_slots=3, n_ctx=256, n_batch=256, **decoder)
        ends = {ord("e")}
        self.cache = PrefixCache(
            self.decoder, self.decoder.clock, n_cache_reuse=8, cache_ram_bytes=3000, message_ends=ends
        )
        self.running: list[SequenceState] = []
        self.waiting: list[SequenceState] = []
        self.n_made = 0

    def do(self, operation: str, pick: int) -> None:
        if operation == "lock":
            self.lock(PROMPTS[pick % len(PROMPTS)])
        elif operation == "resume":
            if self.waiting and self.cache.table.idle:
                sequence = self.waiting.pop(0)
                self.cache.placement.resume(sequence)
                self.running.append(sequence)
        elif operation == "compact":
            self.cache.compaction.close_holes(1.0)
        elif self.running:
            self.end_or_go_on(operation, self.running[pick % len(self.running)])
        self.check()

    def lock(self, prompt: bytes) -> None:
        self.n_made += 1
        sequence = SequenceState.of(make_request(self.n_made, prompt), 0, 0.0)
        if self.cache.placement.lock(sequence):
            self.running.append(sequence)
        self.cache.cells.release_copies()
        # As the engine's step does: nothing is read before the decode that rotates what was moved.
        self.compute(self.running[-1:])

    def compute(self, sequences: list[SequenceState]) -> None:
        for sequence in sequences:
            assert sequence.slot is not None
            self.decoder.batch.clear()
            new = sequence.tokens[sequence.n_past :][:40]
            self.decoder.batch.add(sequence.slot, new, sequence.n_past, 0)
            self.decoder.decode()
            self.cache.cells.note_decode()
            sequence.n_past += len(new)
            if sequence.n_past == len(sequence.tokens):
                sequence.tokens.append(ord("e"))

    def end_or_go_on(self, operation: str, sequence: SequenceState) -> None:
        placement = self.cache.placement
        if operation == "compute":
            self.compute([sequence])
        elif operation == "take back":
            del sequence.tokens[max(1, len(sequence.tokens) - 3) :]
            self.cache.cells.rewind(sequence)
        else:
            self.running.remove(sequence)
            if operation == "suspend" and sequence.n_past:
                placement.suspend(sequence)
                self.waiting.append(sequence)
            else:
                {"forget": placement.forget, "discard": placement.discard}.get(operation, placement.insert)(sequence)

    def check(self) -> None:
        self.cache.check_integrity()
        for slot in self.cache.table.slots:
            assert self.decoder.tokens(slot.index) == slot.computed.tolist(), f"slot {slot.index} holds other tokens"
        assert [slot.sequence for slot in self.cache.table.running] == sorted(
            self.running, key=lambda one: one.slot or 0
        )


lives = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 9)), max_size=25)
caches = st.sampled_from([{}, {"copies_all": False}, {"can_trim": False}])
faults = st.dictionaries(st.integers(0, 6), st.sampled_from(["short", "refused"]), max_size=2)


@given(lives, caches, faults)
def test_whatever_happens_table_and_context_agree(
    life: list[tuple[str, int]], decoder: dict[str, bool], bad_restores: dict[int, str]
) -> None:
    rig = Life(**decoder)
    rig.decoder.bad_restores = bad_restores
    for operation, pick in life:
        rig.do(operation, pick)


def test_integrity_names_everything_that_is_wrong_at_once() -> None:
    rig = Life()
    rig.lock(STEM)
    (sequence,) = rig.running
    rig.decoder.trim(0, 10)
    sequence.slot = 2
    with pytest.raises(EngineFailure) as raised:
        rig.cache.check_integrity()
    running = next(slot.index for slot in rig.cache.table.running)
    assert raised.value.message == (
        f"slot {running} holds 10 tokens instead of 40; slot {running} runs a sequence that is in slot 2"
    )


def test_lost_contents_and_bad_files_are_told_together() -> None:
    rig = Life()
    slot = rig.cache.table.slots[0]
    slot.tokens = array("i")
    rig.cache.cells.lose(slot, EngineFailure("lost"))
    assert rig.cache.n_failed_restores == 1
