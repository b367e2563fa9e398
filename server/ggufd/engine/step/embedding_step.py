"""Embedding batches between decode steps, within the pause that decoding sequences may have."""

from __future__ import annotations

from collections.abc import Callable

from ggufd.engine.embeddings.embedding import Embedder
from ggufd.engine.scheduling.scheduler import Scheduler
from ggufd.engine.step.lifecycle import Lifecycle


class EmbeddingStep:
    """Runs `embedder` beside the sequences of `lifecycle`; times come from `clock`, in seconds."""

    def __init__(
        self, embedder: Embedder, lifecycle: Lifecycle, scheduler: Scheduler, clock: Callable[[], float]
    ) -> None:
        self.embedder = embedder
        self._lifecycle = lifecycle
        self._scheduler = scheduler
        self._clock = clock

    def run(self) -> None:
        """Compute one batch of inputs, if there are any; its time is no part of the step gap."""
        if not self.embedder.has_work:
            self._lifecycle.is_embedding = False
            return
        counters, start_s = self._lifecycle.counters, self._clock()
        pause_s = self._scheduler.pause_left_s(counters.step_s, bool(self._lifecycle.awake))
        self._lifecycle.events.put(*self.embedder.step(pause_s))
        self._lifecycle.is_embedding = self.embedder.is_awaited
        counters.leave_out(self._clock() - start_s)
