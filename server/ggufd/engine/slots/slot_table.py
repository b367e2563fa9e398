"""Slot table: which sequence runs in which slot, which tokens each slot holds, and the LRU order of the idle ones.

A slot is one stream of the context, numbered by its `seq_id`. Who owns its cells, as half-open intervals of positions:

    running slot   [0, n_past)              computed; the tokens are those of its sequence
                   [n_past, len(tokens))    to be computed by the next steps
    idle slot      [0, len(slot.tokens))    cached prefix: reused, copied, saved or evicted
    either         [0, n_fixed)             restored from a state that cannot be cut: kept as a whole or not at all

The table knows no llama.cpp; `KVCells` keeps the context in step with it.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ggufd.engine.messages.requests import EVERYBODYS, CacheScope
from ggufd.engine.sequence.sequence import SequenceState
from ggufd.errors import EngineFailure


@dataclass(slots=True)
class Slot:
    """One slot. `tokens` is its cached prefix while idle; a running slot has none of its own.

    `last_used` is a logical time, 0 for a slot that was evicted; `used_s` is the table's clock then. `chat` is the
    conversation as its last request named it. `is_shifted` until the decode that rotates moved keys. `is_background`
    where background work left its content, which is not worth a place beyond the slot.
    """

    index: int
    tokens: array[int] = field(default_factory=lambda: array("i"))
    sequence: SequenceState | None = None
    last_used: int = 0
    used_s: float = 0.0
    cache_scope: CacheScope = EVERYBODYS
    person: str = ""
    chat: str = ""
    n_fixed: int = 0
    is_shifted: bool = False
    is_background: bool = False

    @property
    def is_idle(self) -> bool:
        return self.sequence is None

    @property
    def is_alone(self) -> bool:
        """Whether what runs here shares no batch with others."""
        return self.sequence is not None and self.sequence.is_deterministic

    @property
    def computed(self) -> array[int]:
        """The tokens whose KV state is in the slot."""
        return self.tokens if self.sequence is None else self.sequence.tokens[: self.sequence.n_past]

    @property
    def n_computed(self) -> int:
        return len(self.tokens) if self.sequence is None else self.sequence.n_past

    @property
    def is_readable(self) -> bool:
        """Whether it has a KV state that may be copied: keys that were moved have wrong positions until rotated."""
        return self.n_computed > 0 and not self.is_shifted


class SlotTable:
    """The `n_slots` slots of one context. Times come from `clock`, in seconds."""

    def __init__(self, n_slots: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.slots = [Slot(i) for i in range(n_slots)]
        self._clock = clock
        self._time = 0

    @property
    def running(self) -> list[Slot]:
        return [slot for slot in self.slots if not slot.is_idle]

    @property
    def idle(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.is_idle]

    @property
    def n_free(self) -> int:
        """Slots that a request may have at once: idle ones, and those that background work gives up for it."""
        return sum(slot.sequence is None or slot.sequence.is_background for slot in self.slots)

    def slot_of(self, sequence: SequenceState) -> Slot:
        """The slot that a sequence runs in. Raises `EngineFailure` for one without."""
        if sequence.slot is None:
            raise EngineFailure("a sequence without a slot cannot leave one")
        return self.slots[sequence.slot]

    def victim(self) -> Slot:
        """The idle slot to evict next: an empty one, as near to the running ones as can be, else the LRU one.

        What background work left comes before what others may come back to.
        """
        running = [slot.index for slot in self.running]
        middle = sum(running) / len(running) if running else 0.0

        def worth(slot: Slot) -> tuple[float, ...]:
            return (slot.n_computed > 0, not slot.is_background, slot.last_used, abs(slot.index - middle))

        return min(self.idle, key=worth)

    def touch(self, slot: Slot) -> None:
        """Make a slot the most recently used. Its content has changed: no two contents have the same `last_used`."""
        self._time += 1
        slot.last_used, slot.used_s = self._time, self._clock()

    def assign(self, slot: Slot, sequence: SequenceState) -> None:
        """Let a sequence run in an idle slot, whose content is its first `n_past` tokens."""
        slot.tokens, slot.sequence = array("i"), sequence
        slot.cache_scope, slot.person = sequence.request.cache_scope, sequence.request.principal.person
        slot.chat, slot.is_background = sequence.request.chat, sequence.is_background
        sequence.slot = slot.index
        self.touch(slot)

    def vacate(self, sequence: SequenceState, tokens: array[int]) -> Slot:
        """Take a sequence out of its slot, which is idle then and holds `tokens`."""
        slot = self.slot_of(sequence)
        slot.tokens, slot.sequence = tokens, None
        sequence.slot = None
        return slot

    def exchange(self, running: Slot, idle: Slot) -> None:
        """Swap the entries of a running slot and an idle one."""
        sequence = running.sequence
        assert sequence is not None
        idle.sequence, running.sequence = sequence, None
        running.tokens, idle.tokens = idle.tokens, array("i")
        running.last_used, idle.last_used = idle.last_used, running.last_used
        running.used_s, idle.used_s = idle.used_s, running.used_s
        running.cache_scope, idle.cache_scope = idle.cache_scope, running.cache_scope
        running.person, idle.person = idle.person, running.person
        running.chat, idle.chat = idle.chat, running.chat
        running.is_background, idle.is_background = idle.is_background, running.is_background
        sequence.slot = idle.index

    def violations(self) -> Iterator[str]:
        """What is inconsistent in the table itself."""
        for slot in self.slots:
            if slot.sequence is not None and slot.sequence.slot != slot.index:
                yield f"slot {slot.index} runs a sequence that is in slot {slot.sequence.slot}"
            if slot.sequence is not None and len(slot.tokens):
                yield f"slot {slot.index} runs and keeps tokens of its own"
