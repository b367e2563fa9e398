"""First half of a step: which sequences run, and which of their tokens the next batch computes."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ggufd.engine.queueing.admission import Admission
from ggufd.engine.scheduling.adapter_turns import AdapterTurns
from ggufd.engine.scheduling.scheduler import Chunk, Scheduler
from ggufd.engine.sequence.sequence import SequenceState
from ggufd.engine.slots.context_shift import ContextShift
from ggufd.engine.step.deadlines import Deadlines
from ggufd.engine.step.drafting import Drafting
from ggufd.engine.step.lifecycle import Lifecycle
from ggufd.engine.telemetry.trace import StepTrace
from ggufd.errors import EngineFailure

logger = logging.getLogger(__name__)


class StepPlanner:
    """Applies the policies of a step in their order: timeouts, admission, context shift, drafts, batch scheduling.

    Times come from `clock`, in seconds.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        admission: Admission,
        deadlines: Deadlines,
        context_shift: ContextShift,
        drafting: Drafting,
        scheduler: Scheduler,
        trace: StepTrace,
        clock: Callable[[], float],
    ) -> None:
        self._lifecycle = lifecycle
        self._admission = admission
        self._deadlines = deadlines
        self._context_shift = context_shift
        self._drafting = drafting
        self._scheduler = scheduler
        self._trace = trace
        self._clock = clock
        self._adapter_turns = AdapterTurns()

    def plan(self) -> list[Chunk]:
        """Chunks of the next batch; none where nothing is to be computed."""
        lifecycle = self._lifecycle
        self._trace.begin()
        start_s = self._clock()
        self._deadlines.expire()
        self._meet()
        self._admit()
        self._shift_contexts()
        self._deadlines.announce()
        awake = lifecycle.awake
        turn = self._adapter_turns.next(awake)
        self._drafting.draft(awake)
        is_watched = any(sequence.is_decoding for sequence in awake)
        now_s = self._clock()
        plan = self._scheduler.schedule(
            turn,
            is_watched=is_watched,
            n_waiting=len(lifecycle.queue) - lifecycle.queue.n_background,
            now_s=now_s,
            spent_s=now_s - start_s,
            served=lifecycle.queue.served,
        )
        if plan:
            self._trace.planned()
        return plan

    @property
    def next_text_s(self) -> float | None:
        """Seconds of the next step if it only decodes; None where it may prefill, or nothing is being decoded."""
        running = self._lifecycle.running
        is_decoding = bool(running) and all(sequence.is_decoding for sequence in running)
        return self._scheduler.decode_s(running) if is_decoding and not self._lifecycle.queue else None

    def _meet(self) -> None:
        """Give each sequence that has come since the last step its patience: see `engine.scheduling.shortest_first`."""
        queue, shortest_first = self._lifecycle.queue, self._scheduler.shortest_first
        if shortest_first is None:
            return
        for one in [one for one in queue.waiting() if one.patience_s is None and not one.is_background]:
            account = one.request.principal.account
            waiting = (other for other in queue.waiting() if other.serial < one.serial)
            ahead = (
                other for other in (*self._lifecycle.running, *waiting) if other.request.principal.account == account
            )
            shortest_first.meet(one, ahead, self._lifecycle.cache.matcher.n_reusable(one))

    def _admit(self) -> None:
        """Move waiting sequences into slots, in the order of the admission policy.

        That copies or restores cached state. What takes longer than a step may is left to the next: sequences that
        have a slot need not wait until all have one.
        """
        lifecycle = self._lifecycle
        self._build_bans()
        end_s = self._clock() + self._scheduler.budget.max_gap_s
        for sequence in self._admission.admissible():
            lifecycle.start(sequence)
            if self._clock() > end_s:
                break
        for newcomer, victim in self._admission.yields(lifecycle.running):
            if not lifecycle.give_way(victim):
                break
            lifecycle.start(newcomer)
        for newcomer, victim in self._admission.exchanges(lifecycle.running):
            if lifecycle.preempt(victim):
                lifecycle.start(newcomer)
        lifecycle.cache.cells.release_copies()

    def _build_bans(self) -> None:
        """Build a piece of the first unfinished list of banned phrases in the queue."""
        for sequence in self._lifecycle.queue.waiting():
            if sequence.bans is not None and not sequence.bans.is_ready:
                sequence.bans.build()
                return

    def _shift_contexts(self) -> None:
        """Shift the context of sequences whose slot is full: see `engine.slots.context_shift`."""
        for sequence in [one for one in self._lifecycle.awake if self._context_shift.is_full(one)]:
            # A sibling may have failed a moment ago.
            if not sequence.is_finished:
                self._drop_older_half(sequence)

    def _drop_older_half(self, sequence: SequenceState) -> None:
        gap = self._context_shift.gap(sequence)
        assert gap is not None, "a full sequence was not ended"
        # While its last draft is still where it was.
        sequence.acceptance.settle(sequence.tokens)
        try:
            self._lifecycle.cache.cells.shift(sequence, gap.start, gap.n)
        except EngineFailure as error:
            self._lifecycle.lose(sequence, error)
            return
        if sequence.lookup is not None:
            sequence.lookup.restart(len(sequence.tokens))
        request_id = sequence.request.request_id
        logger.warning(
            "context shift: request %d goes on without %d tokens behind its first %d", request_id, gap.n, gap.start
        )
