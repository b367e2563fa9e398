"""Batches: a plan becomes rows, llama.cpp computes them, and the logits come back beside their chunks.

Measures what batches cost: for the scheduler's token budget, for drafts, for the number of threads. Knows no tokens but
those of the plan, and samples nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ggufd.engine.backend.interfaces import Decoder, Grammars, Rows
from ggufd.engine.costs.step_costs import StepCosts
from ggufd.engine.scheduling.scheduler import Chunk, rows_of
from ggufd.engine.scheduling.threads import ThreadTuner
from ggufd.engine.slots.cells import KVCells
from ggufd.engine.telemetry.counters import Counters
from ggufd.engine.telemetry.trace import StepTrace
from ggufd.llama.context.batch import Batch


class Computed(NamedTuple):
    """Computed chunk with the logits that it asked for; `last_row` is its last row in the batch."""

    chunk: Chunk
    rows: Rows
    last_row: int


class Costs(NamedTuple):
    """Estimates that learn from the time of each batch."""

    steps: StepCosts
    threads: ThreadTuner


class Batcher:
    """Computes plans on one decoder. Times come from `clock`, in seconds."""

    def __init__(
        self,
        decoder: Decoder,
        grammars: Grammars,
        cells: KVCells,
        costs: Costs,
        counters: Counters,
        trace: StepTrace,
        clock: Callable[[], float],
    ) -> None:
        self._decoder = decoder
        self._grammars = grammars
        self._cells = cells
        self._costs = costs
        self._counters = counters
        self._trace = trace
        self._clock = clock

    def compute(self, plan: list[Chunk], *, depth: int) -> list[Computed]:
        """Compute one batch; `depth` is the number of tokens in the deepest slot.

        Raises `NoRoomError` and `EngineFailure`; then half of it may be in the cache.
        """
        places = self._fill_batch(plan)
        self._begin_masks(plan)
        n_decode = sum(chunk.n_tokens for chunk in plan if chunk.is_decode)
        n_prefill = self._decoder.batch.n_rows - n_decode
        is_alone = plan[0].sequence.is_deterministic
        # Steps with drafts have too many numbers of rows to try threads with each.
        is_fixed = is_alone or n_prefill > 0 or n_decode > len(plan)
        self._set_threads(n_decode, depth, is_fixed=is_fixed)
        self._decoder.set_adapters(plan[0].sequence.request.adapters)
        seconds = self._decoder.decode()
        self._note(plan, seconds, n_decode, n_prefill)
        n_outputs = self._decoder.batch.n_outputs
        logits = self._decoder.logits() if n_outputs else np.empty((0, 0), np.float32)
        return [
            Computed(chunk, logits[first : first + chunk.n_outputs], last_row)
            for chunk, (first, last_row) in zip(plan, places, strict=True)
        ]

    def _note(self, plan: list[Chunk], seconds: float, n_decode: int, n_prefill: int) -> None:
        n_rows = n_decode + n_prefill
        self._counters.end(self._clock(), seconds, n_rows=n_rows, n_sequences=len(plan), n_prefill=n_prefill)
        self._cells.note_decode()
        if not self._costs.threads.tries_fewer:
            expected_s = self._costs.steps.record(rows_of(plan), seconds, n_prefill=n_prefill)
            self._counters.note_expected(expected_s)
            self._trace.expected_s += expected_s
        self._note_batch(plan, seconds, n_decode, n_prefill)

    def _fill_batch(self, plan: list[Chunk]) -> list[tuple[int, int]]:
        """Write the plan into the batch; returns the first output and the last row of each chunk."""
        batch = self._decoder.batch
        batch.clear()
        return [(_add(batch, chunk), batch.n_rows - 1) for chunk in plan]

    def _begin_masks(self, plan: list[Chunk]) -> None:
        """Start computing the grammar masks that are needed after this decode."""
        constraints = [
            chunk.sequence.constraint
            for chunk in plan
            if chunk.sequence.constraint is not None and chunk.n_outputs and _is_last(chunk)
        ]
        constraints = [one for one in constraints if not one.is_free]
        if constraints:
            self._grammars.begin_masks(constraints)

    def _set_threads(self, n_decode: int, depth: int, *, is_fixed: bool) -> None:
        """Record the last batch, unless the engine was idle in between, and choose the threads of this one.

        Where they are fixed they are as configured.
        """
        self._counters.begin(self._clock())
        if self._counters.step_gap_s < self._counters.decode_s:
            self._costs.threads.record(self._counters.decode_s + self._counters.step_gap_s)
        self._decoder.set_threads(self._costs.threads.choose(n_decode, depth=depth, is_fixed=is_fixed))

    def _note_batch(self, plan: list[Chunk], seconds: float, n_decode: int, n_prefill: int) -> None:
        """Add a batch to the trace of the step, which may have several."""
        self._trace.decode_s += seconds
        self._trace.n_sequences += len(plan)
        self._trace.n_decode += n_decode
        self._trace.n_prefill += n_prefill
        if n_decode > len(plan):
            self._trace.n_draft += sum(len(chunk.sequence.draft) for chunk in plan)


def _add(batch: Batch, chunk: Chunk) -> int:
    """Write a chunk into the batch; returns its first output."""
    sequence = chunk.sequence
    assert sequence.slot is not None
    start, end = sequence.n_past, sequence.n_past + chunk.n_tokens
    if chunk.is_image:
        return batch.add_rows(sequence.slot, sequence.images.rows(start, end), start, chunk.n_outputs)
    tokens = sequence.tokens[start:end]
    tokens.extend(sequence.draft)
    return batch.add(sequence.slot, tokens, start, chunk.n_outputs)


def _is_last(chunk: Chunk) -> bool:
    """Whether the chunk is the last uncomputed one of its sequence."""
    n_draft = len(chunk.sequence.draft)
    return chunk.sequence.n_past + chunk.n_tokens - n_draft == len(chunk.sequence.tokens)
