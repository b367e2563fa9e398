"""Draft tokens of a step: speculative decoding of a few sequences.

See `engine.speculation` for where drafts come from and what they are worth. Knows no batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ggufd.engine.costs.step_costs import StepCosts
from ggufd.engine.costs.step_shape import SlotRows
from ggufd.engine.sequence.sequence import SequenceState
from ggufd.engine.slots.context_shift import ContextShift
from ggufd.engine.speculation.drafted_step import Candidate
from ggufd.engine.speculation.prompt_lookup import PromptLookup
from ggufd.engine.speculation.speculator import Speculator
from ggufd.engine.telemetry.counters import Counters
from ggufd.engine.telemetry.trace import StepTrace
from ggufd.placement.draft_plan import MAX_DRAFTED


class VerifiedRows(NamedTuple):
    """Rows of a sequence in a batch, and how many of them were draft tokens, and accepted ones."""

    rows: SlotRows
    n_drafted: int
    n_accepted: int

    @property
    def needed(self) -> SlotRows:
        """The rows without rejected ones."""
        return self._without(self.n_drafted - self.n_accepted)

    @property
    def plain(self) -> SlotRows:
        """The rows without a draft."""
        return self._without(self.n_drafted)

    def _without(self, n_rows: int) -> SlotRows:
        return self.rows._replace(n_rows=self.rows.n_rows - n_rows)


class Drafting:
    """Drafts for slots of `n_ctx` tokens, in batches of which `n_outputs_max` rows have logits.

    Times come from `clock`, in seconds.
    """

    def __init__(
        self,
        speculator: Speculator,
        context_shift: ContextShift,
        n_ctx: int,
        n_outputs_max: int,
        costs: StepCosts,
        counters: Counters,
        trace: StepTrace,
        clock: Callable[[], float],
    ) -> None:
        self._speculator = speculator
        self._context_shift = context_shift
        self._n_ctx = n_ctx
        self._n_outputs_max = n_outputs_max
        self._costs = costs
        self._counters = counters
        self._trace = trace
        self._clock = clock

    def begin(self, sequence: SequenceState) -> None:
        """Follow the text of a sequence that was admitted. A deterministic one is computed token by token."""
        if self._speculator.is_on and not sequence.is_deterministic:
            sequence.lookup = PromptLookup(sequence.n_prompt)

    def draft(self, running: list[SequenceState]) -> None:
        """Set the drafts of decoding sequences, often to none; with many of them, or beside a prompt, there is none.

        Under a grammar most tokens are forced or masked, and each row would wait for a mask: no draft there, but where
        the grammar is free.
        """
        if not self._speculator.is_on or not 0 < len(running) <= MAX_DRAFTED:
            return
        drafters = [one for one in running if one.lookup is not None and not _is_constrained(one)]
        if not drafters or not all(one.is_decoding for one in running):
            return
        start_s = self._clock()
        self._draft(drafters, running)
        self._trace.draft_s = self._clock() - start_s
        # A draft model's time is no gap that a thread too many would explain.
        self._counters.leave_out(self._trace.draft_s)

    def _draft(self, drafters: list[SequenceState], running: list[SequenceState]) -> None:
        """Outputs are shared out evenly: a batch has only so many rows with logits."""
        others = [SlotRows(one.slot or 0, 1, one.n_past) for one in running if one not in drafters]
        most = (self._n_outputs_max - len(running)) // len(drafters)

        def step_s(lengths: Sequence[int]) -> float:
            rows = [SlotRows(one.slot or 0, 1 + n, one.n_past) for one, n in zip(drafters, lengths, strict=True)]
            return self._costs.seconds(rows + others)

        candidates = [self._candidate(one, most) for one in drafters]
        drafts = self._speculator.draft(candidates, step_s, n_running=len(running))
        for sequence, draft in zip(drafters, drafts, strict=True):
            sequence.draft = draft

    def settle(self, parts: Sequence[VerifiedRows]) -> None:
        """Account for the drafts of a computed batch: what rejected tokens cost, and what accepted ones saved."""
        took_s = self._costs.seconds([one.rows for one in parts])
        needed_s = self._costs.seconds([one.needed for one in parts])
        plain_s = self._costs.seconds([one.plain for one in parts])
        rejected_s = max(0.0, took_s - needed_s)
        self._trace.rejected_s += rejected_s
        self._counters.rejected_s += rejected_s
        if plain_s:
            worth = 1 + sum(one.n_accepted for one in parts) / len(parts)
            self._speculator.settle(took_s / plain_s, needed_s / plain_s, worth)

    def _candidate(self, sequence: SequenceState, most: int) -> Candidate:
        """A draft model sees no images, so it drafts nothing behind one."""
        assert sequence.lookup is not None
        n_left = self._n_left(sequence)
        acceptance = None if sequence.images else sequence.acceptance
        return Candidate(sequence.lookup, sequence.tokens, min(n_left - 1, most), n_left, acceptance)

    def _n_left(self, sequence: SequenceState) -> int:
        """Tokens that may still be sampled."""
        n_left = self._n_ctx - len(sequence.tokens)
        limit = self._context_shift.limit(sequence.request)
        return n_left if limit is None else min(n_left, limit - sequence.n_generated)


def _is_constrained(sequence: SequenceState) -> bool:
    return sequence.constraint is not None and not sequence.constraint.is_free
