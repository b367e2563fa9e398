"""Admission policy: which waiting sequences get a slot, a free one, a reserved one, or one by preemption.

Between the queue, which knows the order, and the cache, which knows the slots; the engine carries it out. Preemption
spares a waiting sequence the end of a long answer:

    by priority      a more urgent sequence takes the slot of a less urgent one; waiting counts as urgency in both
    by fair share    an account takes a slot of another that holds more than its share, by weight, unless it was served
                     much more than that one

    of background   a sequence that nobody waits for gives up its slot to any other, whatever the settings

Preemption cannot ping-pong: after the exchange the victim has no claim on the slot. At most as many sequences as there
are slots are preempted at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ggufd.engine.messages.config import EngineRules
from ggufd.engine.queueing.queue import RequestQueue
from ggufd.engine.sequence.sequence import SequenceState
from ggufd.engine.slots.matching import PrefixMatcher
from ggufd.engine.slots.slot_table import SlotTable

_CREDIT = 1000.0
"""Weighted tokens by which an account may be ahead of another and still claim its share of the slots."""


class Preemption(NamedTuple):
    """Exchange of a slot: the waiting `newcomer` gets it, the running `victim` gives it up."""

    newcomer: SequenceState
    victim: SequenceState


class Admission:
    """Admission of the sequences in `queue` to the slots of `table`."""

    def __init__(self, queue: RequestQueue, table: SlotTable, matcher: PrefixMatcher, rules: EngineRules) -> None:
        self._queue = queue
        self._table = table
        self._matcher = matcher
        # One slot at least is for everybody.
        self._n_reserved = min(rules.n_reserved, len(table.slots) - 1)
        self._short_tokens = rules.short_tokens
        self._preempts = rules.preempts

    def admissible(self) -> Iterator[SequenceState]:
        """Sequences that get a free slot, in order; each is to be placed before the next is asked for.

        A sequence whose prefix another one is computing right now waits for that, and lets others pass: copying is
        cheaper. So does one whose grammar is being compiled. Background work starts where nobody waits for a slot.
        """
        if not self._queue or not self._table.idle:
            return
        passed_over: list[SequenceState] = []
        for sequence in self._queue:
            if not self._table.idle:
                return
            if sequence.is_background and any(not one.is_preparing for one in passed_over):
                return
            if self._can_start(sequence) and self._may_take_slot(sequence):
                yield sequence
            elif not sequence.is_background:
                passed_over.append(sequence)

    def yields(self, running: list[SequenceState]) -> Iterator[Preemption]:
        """Exchanges of background work for what waits; each is to be carried out before the next is asked for."""
        if not self._queue or not any(sequence.is_background for sequence in running):
            return
        for newcomer in self._queue:
            if newcomer.is_background or self._table.idle:
                return
            if self._can_start(newcomer) and self._may_take_slot(newcomer):
                victims = [one for one in running if one.is_background and not self._table.slot_of(one).is_shifted]
                if not victims:
                    return
                yield Preemption(newcomer, max(victims, key=self._queue.rank))

    def _may_take_slot(self, sequence: SequenceState) -> bool:
        """Whether the reserved slots are left free, or are for it too: background work gives them up again."""
        return sequence.is_background or self._table.n_free > self._n_reserved or self.is_short(sequence)

    def exchanges(self, running: list[SequenceState]) -> Iterator[Preemption]:
        """Preemptions, at most one an account; each is to be carried out before the next is asked for."""
        if not self._preempts or not self._queue:
            return
        for newcomer in self._queue.heads():
            n_preempted = sum(one.is_preempted and not one.is_background for one in self._queue.waiting())
            if n_preempted >= len(self._table.slots):
                return
            if self._can_start(newcomer) and (victim := self._victim(newcomer, running)) is not None:
                yield Preemption(newcomer, victim)

    def is_short(self, sequence: SequenceState) -> bool:
        """Whether a sequence is short: few tokens to compute that no slot holds, and few to generate."""
        limit = sequence.request.max_tokens
        if limit is None or limit > self._short_tokens:
            return False
        n_left = self._short_tokens - limit
        return sequence.n_prompt <= n_left or sequence.n_prompt - self._matcher.longest(sequence) <= n_left

    def _can_start(self, sequence: SequenceState) -> bool:
        # A choice whose sibling failed a moment ago has left the queue.
        if sequence.is_finished or sequence.is_preparing:
            return False
        return sequence.is_preempted or not self._matcher.should_wait(sequence)

    def _victim(self, newcomer: SequenceState, running: Iterable[SequenceState]) -> SequenceState | None:
        """The least urgent running sequence that should give way, the latest among equals; None when none should."""
        able = [
            sequence
            for sequence in running
            if self._table.slot_of(sequence).is_readable and self._gives_way(sequence, newcomer)
        ]
        return max(able, key=self._queue.rank, default=None)

    def _gives_way(self, victim: SequenceState, newcomer: SequenceState) -> bool:
        if victim.is_background:
            return False
        if victim.request.priority > newcomer.request.priority:
            return self._queue.rank(victim) > self._queue.rank(newcomer) or self._holds_more(victim, newcomer)
        return victim.request.priority == newcomer.request.priority and self._holds_more(victim, newcomer)

    def _holds_more(self, victim: SequenceState, newcomer: SequenceState) -> bool:
        """Whether the victim's account holds as much of the slots as the newcomer's, by weight, after the exchange."""
        rich, poor = victim.request.principal, newcomer.request.principal
        if rich.account == poor.account:
            return False
        held = (self._queue.n_running(rich.account) - 1) / rich.limits.weight
        would_hold = (self._queue.n_running(poor.account) + 1) / poor.limits.weight
        counters = self._queue.counters
        return would_hold <= held and counters[poor.account] <= counters[rich.account] + _CREDIT
