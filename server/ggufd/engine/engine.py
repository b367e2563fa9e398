"""Engine: takes requests, computes steps, returns what happened. Synchronous; knows no HTTP and no JSON.

Start reading at `Engine.step`; `builder` shows how the parts belong together.
"""

from __future__ import annotations

from collections.abc import Sequence

from ggufd.engine.maintenance import Maintenance
from ggufd.engine.messages.config import DiskPlace
from ggufd.engine.messages.events import FinishReason
from ggufd.engine.messages.reports import ChatsSaved, Event, LiveState, QueueState, SlotDone, Stats, Steps
from ggufd.engine.messages.requests import ActOnSlot, AdoptChat, EmbedRequest, EngineRequest
from ggufd.engine.slot_actions import act_on_slot
from ggufd.engine.statistics import Statistics
from ggufd.engine.step.batch_runner import BatchRunner
from ggufd.engine.step.embedding_step import EmbeddingStep
from ggufd.engine.step.lifecycle import Lifecycle
from ggufd.engine.step.output_processor import OutputProcessor
from ggufd.engine.step.step_planner import StepPlanner
from ggufd.engine.step.token_step import StepOutput
from ggufd.engine.submission import Submission
from ggufd.errors import GgufdError


class Engine:
    """Runs many sequences on one context. Not thread-safe: one thread owns it and its context.

    `add`, `abort` and `finish` change what runs; `step` computes and returns the events.
    """

    def __init__(
        self,
        submission: Submission,
        lifecycle: Lifecycle,
        planner: StepPlanner,
        batch_runner: BatchRunner,
        output_processor: OutputProcessor,
        embedding_step: EmbeddingStep,
        maintenance: Maintenance,
        statistics: Statistics,
    ) -> None:
        self._submission = submission
        self._lifecycle = lifecycle
        self._planner = planner
        self._batch_runner = batch_runner
        self._output_processor = output_processor
        self._embedding_step = embedding_step
        self._maintenance = maintenance
        self._statistics = statistics
        self._embedder = embedding_step.embedder
        self._queue, self._cache = lifecycle.queue, lifecycle.cache
        self._running, self._events = lifecycle.running, lifecycle.events

    # --- the step ---------------------------------------------------------------------------------------------------

    # Continuous batching: sequences join and leave between any two steps, and every step computes one batch for all.
    # There is no prefill phase and no decode phase; each sequence's computed tokens catch up with its tokens.
    #
    #   schedule  End what waited or ran too long. Admit waiting sequences into slots, where each reuses the longest
    #             cached prefix; preempt where the policy says so. Shift the context of full slots, report places in
    #             the queue. Draft tokens for a few sequences. Then fill the batch: one row of every decoding sequence,
    #             its draft, and chunks of prompts (chunked prefill) up to a token budget that keeps the step short.
    #   decode    One llama_decode, and one more for embedding rows of images, which cannot share a batch with tokens.
    #             What fails is tried again without drafts, then in halves. So a plan may become several batches, whose
    #             logits are each valid until the next.
    #   sample    From every row with logits a token: masked by grammar and bans, drawn by the sampler chain, turned
    #             into text. A draft is accepted up to the first token that differs from what was sampled.
    #   finish    Sequences that have ended leave their slot, and what they computed stays there as cache.
    #
    # Embedding batches come last, for as long as decoding sequences may be kept waiting.

    def step(self) -> list[Event]:
        """Schedule, decode, sample and finish one batch, and one batch of embeddings; returns what happened."""
        plan = self._planner.plan()
        for computed in self._batch_runner.run(plan):
            self._output_processor.process(computed)
        if plan:
            self._maintenance.note_step()
        self._embedding_step.run()
        if not self._running:
            self._lifecycle.counters.rest()
        return self._events.take()

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._running) or bool(self._queue) or self._embedder.has_work or bool(self._events)

    @property
    def is_preparing(self) -> bool:
        """Whether all there is to do is to wait: for grammars, lists of phrases, states from disk, or other servers."""
        embedder = self._embedder
        is_busy = bool(self._running) or bool(self._events) or (embedder.has_work and not embedder.is_held)
        is_waiting = bool(self._queue) or embedder.is_held
        may_run = self._queue.accounts.may_run
        return (
            not is_busy
            and is_waiting
            and all(one.is_preparing or not may_run(one.request.principal) for one in self._queue.waiting())
        )

    @property
    def next_text_s(self) -> float | None:
        """Seconds of the next step if it only decodes; None where it may do more, or nothing is being decoded."""
        return None if self._embedder.has_work else self._planner.next_text_s

    def run_idle_maintenance(self) -> bool:
        """Idle maintenance, only for when there is no work; returns whether there is more. Raises `EngineFailure`."""
        return self._maintenance.run_idle()

    # --- requests ---------------------------------------------------------------------------------------------------

    def add(self, request: EngineRequest | EmbedRequest) -> None:
        """Queue a request; one that cannot be served gets `Failed`."""
        try:
            self._submission.add(request)
        except GgufdError as error:
            self._lifecycle.fail(request.request_id, error)

    def abort(self, request_id: int) -> None:
        """End a request now, wherever it is; what it computed stays as cache. Unknown ids are fine."""
        self._lifecycle.abort(request_id)
        self._embedder.abort(request_id)

    def finish(self, request_id: int, index: int) -> None:
        """End a sequence with the text that it has, as if its model had ended it. One that is gone is fine."""
        for sequence in self._lifecycle.of_request(request_id):
            if sequence.index == index:
                self._lifecycle.finish(sequence, StepOutput(), FinishReason.STOP)

    def charge_elsewhere(self, costs: Sequence[tuple[str, float]]) -> None:
        """Charge accounts what other servers of a cluster served them, by their weights."""
        self._queue.accounts.charge_elsewhere(costs)

    def hold_elsewhere(self, held: Sequence[tuple[str, int]]) -> None:
        """Count what accounts hold at other servers of a cluster; whoever is not named holds nothing there."""
        self._queue.accounts.hold_elsewhere(held)

    def act_on_slot(self, command: ActOnSlot) -> SlotDone:
        """Erase, save or restore what an idle slot keeps."""
        return act_on_slot(self._cache, command)

    @property
    def disk(self) -> DiskPlace | None:
        """Where chats are kept on disk; None where none are."""
        return None if self._cache.host.disk is None else self._cache.host.disk.place

    def save_chats(self) -> ChatsSaved:
        """Begin to write kept states to disk, as many as it takes at once."""
        return ChatsSaved(self._cache.disk_saves.begin())

    def adopt_chat(self, chat: AdoptChat) -> None:
        """Take up a file that was put into the folder of the disk cache."""
        self._cache.disk_saves.adopt(chat)

    def close(self, timeout_s: float) -> None:
        """End of the engine: what can be kept for the next one is saved, within that time."""
        self._maintenance.close(timeout_s)

    # --- reports ----------------------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Counters, and the state of the slots."""
        return self._statistics.snapshot()

    def queue_state(self) -> QueueState:
        """Every request under way, and its place in the queue."""
        return self._statistics.queue_state()

    def live_state(self) -> LiveState:
        """State for the live view."""
        return self._statistics.live_state()

    def steps(self) -> Steps:
        """Timings of the last steps."""
        return self._statistics.steps()

    def note_sent(self, seconds: float) -> None:
        """Record the time that sending the events of the last step took."""
        self._statistics.note_sent(seconds)

    def check_integrity(self) -> None:
        """Raise `EngineFailure` unless queue, running sequences and slots agree."""
        self._maintenance.check_integrity()
