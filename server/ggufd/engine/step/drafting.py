"""Draft tokens of a step: speculative decoding of a sequence that runs alone.

See `engine.speculation` for where drafts come from and what they are worth. Knows no batch.
"""

from __future__ import annotations

from collections.abc import Callable

from ggufd.engine.costs.step_costs import StepCosts
from ggufd.engine.costs.step_shape import SlotRows
from ggufd.engine.sequence.sequence import SequenceState
from ggufd.engine.slots.context_shift import ContextShift
from ggufd.engine.speculation.prompt_lookup import PromptLookup, Speculator
from ggufd.engine.telemetry.counters import Counters
from ggufd.engine.telemetry.trace import StepTrace


class Drafting:
    """Drafts for slots of `n_ctx` tokens; times come from `clock`, in seconds."""

    def __init__(
        self,
        speculator: Speculator,
        context_shift: ContextShift,
        n_ctx: int,
        costs: StepCosts,
        counters: Counters,
        trace: StepTrace,
        clock: Callable[[], float],
    ) -> None:
        self._speculator = speculator
        self._context_shift = context_shift
        self._n_ctx = n_ctx
        self._costs = costs
        self._counters = counters
        self._trace = trace
        self._clock = clock

    def begin(self, sequence: SequenceState) -> None:
        """Follow the text of a sequence that was admitted. A deterministic one is computed token by token."""
        if self._speculator.is_on and not sequence.is_deterministic:
            sequence.lookup = PromptLookup(sequence.n_prompt)

    def draft(self, running: list[SequenceState]) -> None:
        """Set the draft of a lone decoding sequence, often to none.

        Under a grammar most tokens are forced or masked, and each row would wait for a mask: no draft there, but where
        the grammar is free. A draft model sees no images, so it drafts nothing behind one.
        """
        if len(running) != 1 or not self._speculator.is_on:
            return
        sequence = running[0]
        is_constrained = sequence.constraint is not None and not sequence.constraint.is_free
        if sequence.lookup is not None and sequence.is_decoding and not is_constrained:
            start_s = self._clock()
            limit = self._n_left(sequence) - 1
            has_model = not sequence.images

            def step_s(n_rows: int) -> float:
                return self._costs.seconds([SlotRows(0, n_rows, sequence.n_past)])

            sequence.draft = self._speculator.draft(
                sequence.lookup, sequence.acceptance, sequence.tokens, limit, step_s, has_model=has_model
            )
            self._trace.draft_s = self._clock() - start_s
            # A draft model's time is no gap that a thread too many would explain.
            self._counters.leave_out(self._trace.draft_s)

    def _n_left(self, sequence: SequenceState) -> int:
        """Tokens that may still be sampled."""
        n_left = self._n_ctx - len(sequence.tokens)
        limit = self._context_shift.limit(sequence.request)
        return n_left if limit is None else min(n_left, limit - sequence.n_generated)
