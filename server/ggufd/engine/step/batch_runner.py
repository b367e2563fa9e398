"""Decoding of a plan, with retries: what fails is computed again without drafts, then in halves, down to one row.

A plan is one batch, or several where its chunks cannot share one (`engine.scheduling.decodes`). The request of a row
that cannot be computed by itself fails, and no other. Samples nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from ggufd.engine.scheduling.decodes import decodes
from ggufd.engine.scheduling.scheduler import Chunk, halves, n_rows
from ggufd.engine.step.batcher import Batcher, Computed
from ggufd.engine.step.lifecycle import Lifecycle
from ggufd.engine.telemetry.trace import StepTrace
from ggufd.errors import EngineFailure
from ggufd.llama.context.batch import NoRoomError

_MAX_LOST_STEPS = 3


class BatchRunner:
    """Runs plans on `batcher`, and fails the sequences of `lifecycle` that cannot be computed."""

    def __init__(self, batcher: Batcher, lifecycle: Lifecycle, trace: StepTrace) -> None:
        self._batcher = batcher
        self._lifecycle = lifecycle
        self._trace = trace
        self._n_lost_steps = 0

    def run(self, plan: list[Chunk]) -> Iterator[list[Computed]]:
        """Compute a plan, in one batch for each of its `decodes` where nothing fails.

        Yields each batch, whose logits are valid until the next: they are sampled before the generator goes on.
        Raises `EngineFailure` where a device has failed for good: it stays so until its process is started again.
        """
        n_batches = 0
        if plan:
            self._lifecycle.counters.begin_step()
        for part in decodes(plan):
            for computed in self._compute(part):
                n_batches += 1
                yield computed
        if plan:
            self._note_health(is_any_computed=n_batches > 0)
            self._lifecycle.cache.compaction.close_holes(self._lifecycle.counters.step_s)
            self._trace.end()

    def _compute(self, plan: list[Chunk]) -> Iterator[list[Computed]]:
        plan = [chunk for chunk in plan if not chunk.sequence.is_finished]
        if not plan:
            return
        depth = max((sequence.n_past for sequence in self._lifecycle.running), default=0)
        try:
            computed = self._batcher.compute(plan, depth=depth)
        except (NoRoomError, EngineFailure) as error:
            if plan[0].sequence.is_deterministic:
                # In other pieces it would be another text, which nobody asked for.
                self._lifecycle.lose(plan[0].sequence, error)
                return
            rest = self._rewound(plan)
            # Without drafts there are fewer rows: once more in one piece.
            yield from self._compute(rest) if n_rows(rest) < n_rows(plan) else self._compute_halves(rest, error)
        else:
            yield computed

    def _compute_halves(self, plan: list[Chunk], error: Exception) -> Iterator[list[Computed]]:
        if n_rows(plan) > 1:
            for half in halves(plan):
                yield from self._compute(half)
            return
        for chunk in plan:
            self._lifecycle.lose(chunk.sequence, error)

    def _rewound(self, plan: list[Chunk]) -> list[Chunk]:
        """The plan without drafts after a failed decode, of which half may be in the cache: that is cut back."""
        kept = []
        for chunk in plan:
            try:
                self._lifecycle.cache.cells.rewind(chunk.sequence)
                del chunk.sequence.prompt_logprobs[chunk.sequence.n_past :]
                kept.append(chunk.without_draft())
            except EngineFailure as error:
                self._lifecycle.lose(chunk.sequence, error)
        return kept

    def _note_health(self, *, is_any_computed: bool) -> None:
        self._n_lost_steps = 0 if is_any_computed else self._n_lost_steps + 1
        if self._n_lost_steps >= _MAX_LOST_STEPS:
            raise EngineFailure(f"nothing could be computed in {_MAX_LOST_STEPS} steps one after another")
