"""Lifecycle of sequences: from waiting to running to finished, with queue, slots and events kept consistent.

    waiting  --start-->  running  --finish, leave-->  finished     what was computed stays as cache
       ^                    |
       +-----preempt--------+--------lose, discard--> finished     the request fails, its state is dropped

The one place where a sequence's status changes. Decides nothing and computes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ggufd.engine.messages.events import Admitted, Failed, Finish, FinishReason
from ggufd.engine.preroll.preroll import PreRoll
from ggufd.engine.queueing.forecast import Forecast
from ggufd.engine.queueing.queue import RequestQueue
from ggufd.engine.sequence.sequence import SequenceState, Status
from ggufd.engine.slots.prefix_cache import PrefixCache
from ggufd.engine.step.drafting import Drafting
from ggufd.engine.step.event_buffer import EventBuffer
from ggufd.engine.step.token_step import StepOutput, TokenStep
from ggufd.engine.telemetry.counters import Counters
from ggufd.errors import EngineFailure, GgufdError

logger = logging.getLogger(__name__)


class Lifecycle:
    """State machine of all sequences of one engine. `running` are those in the slots, `events` what happened to them.

    `pre_roll` None computes no prompts ahead. `is_embedding` while somebody waits for vectors. Times come from `clock`,
    in seconds.
    """

    def __init__(
        self,
        queue: RequestQueue,
        cache: PrefixCache,
        token_step: TokenStep,
        drafting: Drafting,
        forecast: Forecast,
        pre_roll: PreRoll | None,
        counters: Counters,
        clock: Callable[[], float],
    ) -> None:
        self.queue = queue
        self.cache = cache
        self.counters = counters
        self.pre_roll = pre_roll
        self.running: list[SequenceState] = []
        self.is_embedding = False
        self.events = EventBuffer()
        self._token_step = token_step
        self._drafting = drafting
        self._forecast = forecast
        self._clock = clock

    def all(self) -> list[SequenceState]:
        """Waiting sequences, then running ones."""
        return [*self.queue.waiting(), *self.running]

    def of_request(self, request_id: int) -> list[SequenceState]:
        """Unfinished sequences of a request."""
        return [sequence for sequence in self.all() if sequence.request.request_id == request_id]

    @property
    def awake(self) -> list[SequenceState]:
        """Running sequences that take part in a step: background work pauses while another waits for a first token."""
        foreground = [sequence for sequence in self.running if not sequence.is_background]
        if self.is_embedding or any(sequence.n_generated == 0 for sequence in foreground):
            return foreground
        return self.running

    # --- starts -----------------------------------------------------------------------------------------------------

    def start(self, sequence: SequenceState) -> None:
        """Move a sequence from waiting to running; its request fails where that cannot be."""
        self.queue.take(sequence)
        try:
            if sequence.state is None:
                self._begin(sequence)
            else:
                self.cache.placement.resume(sequence)
        except Exception as error:
            self.queue.release(sequence)
            if sequence.slot is not None:
                self.cache.placement.insert(sequence)
            self._end(sequence)
            self.fail_request(sequence.request.request_id, failure_of(error))
            return
        sequence.status = Status.RUNNING
        self.running.append(sequence)

    def _begin(self, sequence: SequenceState) -> None:
        """Lock a slot for a new sequence, and set up how its tokens are chosen."""
        if sequence.grammar is not None and sequence.constraint is None:
            sequence.constraint = sequence.grammar.constraint()
        now_s = self._clock()
        self.cache.placement.lock(sequence)
        self.cache.offload.save_ahead(sequence)
        is_predictable = not (sequence.is_background or sequence.is_deterministic or sequence.images)
        if self.pre_roll is not None and sequence.index == 0 and is_predictable:
            sequence.chat = self.pre_roll.begin(sequence.request, sequence.tokens)
        sequence.admit_s = now_s
        self.queue.charge_prompt(sequence)
        self._token_step.begin(sequence)
        self._drafting.begin(sequence)
        self.counters.cached_tokens += sequence.n_cached
        self.events.put(Admitted(sequence.request.request_id, sequence.index, sequence.n_cached))
        self.events.put_progress(sequence, now_s)

    def preempt(self, sequence: SequenceState) -> bool:
        """Move a sequence from running to waiting; sampler, grammar and text stay with it.

        False when its state cannot be read: it keeps its slot.
        """
        try:
            self.cache.placement.suspend(sequence)
        except EngineFailure:
            return False
        self.running.remove(sequence)
        sequence.status = Status.WAITING
        self.queue.put_back(sequence)
        self.counters.preemptions += 1
        return True

    def give_way(self, sequence: SequenceState) -> bool:
        """Preempt background work; what has computed nothing yet goes back as it came."""
        if self.cache.table.slot_of(sequence).n_computed or sequence.n_generated:
            return self.preempt(sequence)
        self.cache.placement.insert(sequence)
        self.running.remove(sequence)
        self._end(sequence)
        sequence.constraint = None
        sequence.status = Status.WAITING
        self.queue.put_back(sequence)
        return True

    # --- ends -------------------------------------------------------------------------------------------------------

    def finish(self, sequence: SequenceState, output: StepOutput, reason: FinishReason) -> None:
        """Finish a sequence with its last output."""
        rest = sequence.detokenizer.flush()
        usage = sequence.usage(self._clock())
        finish = Finish(reason, usage, sequence.detokenizer.stop, output.end)
        self.leave(sequence)
        if not sequence.is_background:
            self._forecast.note_answer(sequence, usage.tokens_per_s)
        output.add(rest)
        self.events.put_text(sequence, output, finish)

    def leave(self, sequence: SequenceState) -> None:
        """End a waiting or running sequence without an output; the computed tokens stay in the slot as cache."""
        if sequence.status is Status.WAITING:
            self.queue.remove(sequence)
            self._end(sequence)
            return
        if self.pre_roll is not None and sequence.chat is not None:
            self.pre_roll.end(sequence.chat, sequence)
        self.cache.placement.insert(sequence)
        self._retire(sequence)

    def abort(self, request_id: int) -> None:
        """End all sequences of a request, of which nothing is told any more."""
        for sequence in self.of_request(request_id):
            self.leave(sequence)
        self.events.drop(request_id)

    def close(self, timeout_s: float) -> None:
        """End of all running sequences; what can be kept on disk is saved, within that time."""
        for sequence in tuple(self.running):
            self.leave(sequence)
        self.cache.offload.close(timeout_s)

    def _retire(self, sequence: SequenceState) -> None:
        self.running.remove(sequence)
        self.queue.release(sequence)
        self.counters.note_end(sequence)
        self._end(sequence)

    def _end(self, sequence: SequenceState) -> None:
        sequence.status = Status.FINISHED
        sequence.state = None
        if sequence.sampler is not None:
            sequence.sampler.close()
            sequence.sampler = None

    # --- failures ---------------------------------------------------------------------------------------------------

    def lose(self, sequence: SequenceState, error: Exception) -> None:
        """Fail the request of a sequence whose slot cannot be trusted; nothing of the slot is kept."""
        self.cache.placement.forget(sequence)
        self._retire(sequence)
        why = f"computing this request failed: {error}" if str(error) else "the context has no room for this request"
        self.fail_request(sequence.request.request_id, EngineFailure(why))

    def discard(self, sequence: SequenceState, error: EngineFailure) -> None:
        """Fail a request, and evict what its sequences continued from: the same would come of it again."""
        for one in self.of_request(sequence.request.request_id):
            if one.slot is not None:
                self.cache.placement.discard(one)
                self._retire(one)
        self.fail_request(sequence.request.request_id, error)

    def fail_request(self, request_id: int, error: GgufdError) -> None:
        """End all sequences of a request with an error."""
        self.abort(request_id)
        self.fail(request_id, error)

    def fail(self, request_id: int, error: GgufdError) -> None:
        """Report the failure of a request that has no sequence."""
        self.events.put(Failed.by(request_id, error))

    def check_integrity(self) -> None:
        """Raise `EngineFailure` unless running sequences and slots agree."""
        self.cache.check_integrity()
        in_slots = {id(slot.sequence) for slot in self.cache.table.running}
        if in_slots != {id(sequence) for sequence in self.running}:
            raise EngineFailure("the running sequences are not those in the slots")
        if any(sequence.status is not Status.RUNNING for sequence in self.running):
            raise EngineFailure("a sequence runs without being in the running state")
        for sequence in self.all():
            for violation in sequence.images.violations(sequence.tokens):
                raise EngineFailure(violation)


def failure_of(error: Exception) -> GgufdError:
    """Error that a request gets for an exception: its own numbers must not take other requests along.

    A failed assertion is an inconsistency of the engine, and no matter of one request: it is raised again.
    """
    if isinstance(error, AssertionError):
        raise error
    if isinstance(error, GgufdError):
        return error
    logger.exception("a request failed")
    return EngineFailure(f"this request could not be computed ({type(error).__name__}: {error})")
