"""Statistics of an engine: what it counted, who waits and runs, and where the time of its steps went."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ggufd.engine.embeddings.embedding import Embedder
from ggufd.engine.live_report import live_state
from ggufd.engine.messages.reports import LiveState, QueueState, SlotState, Stats, Steps
from ggufd.engine.queueing.announcer import Announcer
from ggufd.engine.sequence.sequence import SequenceState
from ggufd.engine.speculation.speculator import Speculator
from ggufd.engine.step.lifecycle import Lifecycle
from ggufd.engine.telemetry.trace import StepTrace


class Statistics:
    """Reads the parts of an engine, and changes none but its trace. Times come from `clock`, in seconds."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        announcer: Announcer,
        embedder: Embedder,
        speculator: Speculator,
        trace: StepTrace,
        clock: Callable[[], float],
    ) -> None:
        self._lifecycle = lifecycle
        self._announcer = announcer
        self._embedder = embedder
        self._speculator = speculator
        self._trace = trace
        self._clock = clock

    def queue_state(self) -> QueueState:
        """Every request under way, with the expected wait of those in the queue."""
        generating = self._announcer.state(self._lifecycle.running, self._clock())
        return QueueState((*generating.entries, *self._embedder.entries()))

    def live_state(self) -> LiveState:
        """State for the live view."""
        state = live_state(self._lifecycle, self.snapshot(), self.queue_state(), self._clock())
        wait_s = self._announcer.next_wait_s(self._lifecycle.running)
        return dataclasses.replace(state, wait_s=wait_s, prefill_tok_s=self._announcer.prefill_tok_s)

    def steps(self) -> Steps:
        """Timings of the last steps."""
        return Steps(self._trace.records)

    def note_sent(self, seconds: float) -> None:
        """Time that sending the events of the last step took."""
        self._trace.sent(seconds)

    def snapshot(self) -> Stats:
        """All counters and the state of every slot."""
        lifecycle, counters, cache = self._lifecycle, self._lifecycle.counters, self._lifecycle.cache
        return Stats(
            waiting=len(lifecycle.queue) - lifecycle.queue.n_background + self._embedder.n_waiting,
            running=len(lifecycle.running),
            steps=counters.steps,
            computed_tokens=counters.computed_tokens,
            cached_tokens=counters.cached_tokens,
            generated_tokens=counters.generated_tokens,
            step_s=counters.step_s,
            step_gap_s=counters.step_gap_s,
            slots=tuple(_slot_state(slot.index, slot.sequence, slot.n_computed) for slot in cache.table.slots),
            preemptions=counters.preemptions,
            busy_slots=counters.busy_slots,
            longest=counters.longest,
            drafted_tokens=counters.drafted_tokens,
            accepted_tokens=counters.accepted_tokens,
            rejected_draft_s=counters.rejected_s,
            model_drafted_tokens=counters.model_drafted_tokens,
            model_accepted_tokens=counters.model_accepted_tokens,
            evictions=cache.offload.n_evicted,
            restores=cache.offload.n_restored,
            host_evictions=cache.host.n_evicted,
            failed_restores=cache.n_failed_restores + self._speculator.n_dropped,
            host_bytes=cache.host.n_bytes,
            embedded_tokens=self._embedder.n_tokens,
            step_seconds=counters.steps_spread.spread,
            step_gap_seconds=counters.step_gaps.spread,
            token_gap_seconds=counters.token_gaps.spread,
            batch_rows=counters.batches.spread,
            cost_errors=counters.cost_errors.spread,
        )


def _slot_state(index: int, sequence: SequenceState | None, n_past: int) -> SlotState:
    if sequence is None:
        return SlotState(index, None, n_past, n_past)
    return SlotState(index, sequence.request.request_id, len(sequence.tokens), n_past)
