"""The engine: takes requests, computes steps, says what came of them. Synchronous; knows no HTTP and no JSON.

Start reading at `Engine.step`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from ggufd.engine.backend.interfaces import Decoder, DraftDecoder, Grammars, Row, Rows, Vocabulary
from ggufd.engine.batcher import Batcher, Computed, Costs
from ggufd.engine.embeddings.embedding import Embedder
from ggufd.engine.event_buffer import EventBuffer
from ggufd.engine.kv_store import slot_file
from ggufd.engine.messages.config import EngineRules
from ggufd.engine.messages.events import Admitted, Failed, Finish, FinishReason, PromptLogprobs
from ggufd.engine.messages.reports import Event, QueueState, SlotDone, SlotState, Stats, Steps
from ggufd.engine.messages.requests import ActOnSlot, EmbedRequest, EngineRequest, SlotAction
from ggufd.engine.preroll.preroll import PreRoll
from ggufd.engine.queueing.admission import Admission
from ggufd.engine.queueing.announcer import Announcer
from ggufd.engine.queueing.forecast import Forecast
from ggufd.engine.queueing.queue import RequestQueue
from ggufd.engine.queueing.waiting_list import waited_too_long
from ggufd.engine.sampling.banned import check_bans
from ggufd.engine.sampling.sampling import NoNumbers
from ggufd.engine.scheduling.adapter_turns import Turns
from ggufd.engine.scheduling.scheduler import Chunk, Scheduler, halves, n_rows
from ggufd.engine.scheduling.threads import ThreadTuner
from ggufd.engine.sequence.sequence import SequenceState, Status
from ggufd.engine.slots.context_shift import ContextShift
from ggufd.engine.slots.prefix_cache import PrefixCache
from ggufd.engine.speculation.draft_model import DraftModel
from ggufd.engine.speculation.prompt_lookup import PromptLookup, Speculator
from ggufd.engine.telemetry.counters import Counters
from ggufd.engine.telemetry.trace import StepTrace
from ggufd.engine.token_step import StepOutput, TokenStep
from ggufd.errors import ContextLengthExceeded, EngineFailure, GgufdError, InvalidRequest, QueueTimeout
from ggufd.llama.context.batch import NoRoomError

logger = logging.getLogger(__name__)

_MAX_LOST_STEPS = 3

_CHECK_EVERY = 256
"""Steps between two looks at the books: they cost some microseconds a slot."""


class Engine:
    """Runs many sequences on one `decoder`. Not thread-safe: one thread owns it and its context.

    `add` and `abort` change what runs; `step` computes and returns the events. Times come from `clock`, in seconds.
    """

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        grammars: Grammars,
        queue: RequestQueue,
        scheduler: Scheduler,
        embedder: Embedder,
        clock: Callable[[], float] = time.perf_counter,
        rules: EngineRules | None = None,
    ) -> None:
        rules = rules or EngineRules()
        self._decoder = decoder
        self._vocabulary = vocabulary
        self._grammars = grammars
        self._queue = queue
        self._scheduler = scheduler
        self._embedder = embedder
        self._clock = clock
        self._cache = PrefixCache(
            decoder,
            clock,
            n_cache_reuse=rules.n_cache_reuse,
            cache_ram_bytes=rules.cache_ram_bytes,
            message_ends=vocabulary.eog_tokens,
            disk=rules.disk,
        )
        self._admission = Admission(queue, self._cache, rules)
        self._turns = Turns()
        self._pre_roll = PreRoll(decoder, self._cache, scheduler) if rules.pre_rolls and decoder.copies_all else None
        self._forecast = Forecast(scheduler.step_time)
        self._announcer = Announcer(queue, self._cache, self._forecast)
        self._speculator = Speculator(rules.max_draft if decoder.can_trim else 0)
        self._running: list[SequenceState] = []
        self._outbox = EventBuffer()
        self._counters = Counters()
        self._trace = StepTrace(clock)
        costs = Costs(scheduler.step_time, self._speculator.costs, ThreadTuner(decoder.n_threads))
        self._batcher = Batcher(decoder, grammars, self._cache, costs, self._counters, self._trace, clock)
        self._context_shift = ContextShift(decoder.n_ctx, is_on=rules.shifts_context and decoder.can_shift)
        self._writer = TokenStep(
            decoder,
            vocabulary,
            self._cache,
            self._counters,
            self._trace,
            self._context_shift,
            queue.charge_token,
            clock,
        )
        self._n_lost_steps = 0

    def guess_with(self, draft: DraftDecoder, p_min: float) -> None:
        """From now on a draft model guesses too. See `engine.speculation.draft_model`."""
        n_vocab, eog = self._decoder.n_vocab, self._vocabulary.eog_tokens
        self._speculator.drafter = DraftModel(draft, n_vocab=n_vocab, eog=eog, p_min=p_min)

    # --- requests ---------------------------------------------------------------------------------------------------

    def add(self, request: EngineRequest | EmbedRequest) -> None:
        """Put a request into the queue, or say `Failed` when it cannot be served."""
        try:
            if isinstance(request, EmbedRequest):
                self._embedder.add(request, n_beside=self._queue.n_requests)
                return
            self._queue.refuse_if_full(n_free=len(self._cache.idle), n_beside=self._embedder.n_waiting)
            self._check(request)
            now_s = self._clock()
            sequences = [SequenceState.of(request, index, now_s) for index in range(request.n)]
            if request.sampling.grammar is not None:
                grammar = self._grammars.compile(request.sampling.grammar)
                for sequence in sequences:
                    sequence.grammar = grammar
            fetch = self._cache.fetch(sequences[0])
            for sequence in sequences:
                sequence.fetch = fetch
            self._queue.push(sequences)
        except GgufdError as error:
            self._fail(request.request_id, error)

    def abort(self, request_id: int) -> None:
        """End a request now, wherever it is; what it computed stays as cache. Unknown ids are fine."""
        for sequence in self._of_request(request_id):
            self._leave(sequence)
        self._embedder.abort(request_id)

    def finish(self, request_id: int, index: int) -> None:
        """End a sequence with what it has said, as if its model had ended it. One that is gone is fine."""
        for sequence in self._of_request(request_id):
            if sequence.index == index:
                self._finish(sequence, StepOutput(), FinishReason.STOP)

    def act_on_slot(self, command: ActOnSlot) -> SlotDone:
        """Erase, save or restore what an idle slot keeps."""
        slot = self._cache.slots[command.slot]
        if not slot.is_idle:
            return SlotDone(command.slot, None)
        n_bytes, n_tokens = 0, slot.n_computed
        try:
            match command.action:
                case SlotAction.ERASE:
                    self._cache.evict(slot)
                case SlotAction.SAVE:
                    n_bytes = slot_file.write(Path(command.path), self._cache.content(slot), command.mark)
                case SlotAction.RESTORE:
                    kept = slot_file.read(Path(command.path), command.mark)
                    self._cache.replace(slot, kept)
                    n_bytes, n_tokens = len(kept.state), len(kept.tokens)
        except GgufdError as error:
            return SlotDone(command.slot, n_tokens, failure=error.message)
        return SlotDone(command.slot, n_tokens, n_bytes)

    def close(self, timeout_s: float) -> None:
        """This is the end: what can be kept for the next engine is kept, within that time."""
        for sequence in tuple(self._running):
            self._leave(sequence)
        self._cache.close(timeout_s)

    @property
    def has_work(self) -> bool:
        return bool(self._running) or bool(self._queue) or self._embedder.has_work or bool(self._outbox)

    @property
    def is_preparing(self) -> bool:
        """Whether there is nothing to do until a grammar is compiled or a list of phrases built."""
        is_busy = bool(self._running) or self._embedder.has_work or bool(self._outbox)
        return not is_busy and bool(self._queue) and all(one.is_preparing for one in self._queue.waiting())

    def _check(self, request: EngineRequest) -> None:
        check_bans(request.banned_strings, request.banned_regexes)
        if not request.prompt or request.n < 1:
            raise InvalidRequest("a request needs at least one prompt token and one choice")
        if len(request.prompt) >= self._decoder.n_ctx:
            raise ContextLengthExceeded.of_prompt(len(request.prompt), self._decoder.n_ctx)
        if len(request.adapters) not in (0, self._decoder.n_adapters):
            raise InvalidRequest(f"there are {self._decoder.n_adapters} adapters", param="lora")
        if not all(0 <= token < self._decoder.n_vocab for token in request.prompt):
            raise InvalidRequest("a prompt token is not in the vocabulary", param="prompt")

    # --- the step ---------------------------------------------------------------------------------------------------

    @property
    def next_text_s(self) -> float | None:
        """Seconds that the next step takes, if it only writes on; None where it may read a prompt, or nobody writes."""
        is_writing = bool(self._running) and all(sequence.is_decoding for sequence in self._running)
        if not is_writing or self._queue or self._embedder.has_work:
            return None
        return self._scheduler.step_time.decode_s

    def step(self) -> list[Event]:
        """Admit, compute one batch, sample, finish, compute vectors; returns what happened."""
        self._trace.begin()
        start_s = self._clock()
        self._expire()
        self._admit()
        self._shift_context()
        self._announce()
        turn = self._turns.next(self._running)
        self._guess()
        is_watched = any(sequence.is_decoding for sequence in self._running)
        spent_s = self._clock() - start_s
        plan = self._scheduler.schedule(turn, is_watched=is_watched, spent_s=spent_s, served=self._queue.served)
        if plan:
            self._trace.planned()
            self._note_health(self._compute(plan))
            self._cache.close_holes(self._counters.step_s)
            self._trace.end()
            if self._counters.steps % _CHECK_EVERY == 0:
                self.check_integrity()
        if self._embedder.has_work:
            self._embed()
        if not self._running:
            self._counters.rest()
        return self._outbox.take()

    def _embed(self) -> None:
        """Compute vectors for as long as those who write may be kept waiting."""
        start_s = self._clock()
        self._outbox.put(*self._embedder.step(self._scheduler.pause_left_s(self._counters.step_s, bool(self._running))))
        self._counters.leave_out(self._clock() - start_s)

    def run_idle_maintenance(self) -> bool:
        """What is better done while nobody waits; short, and only for when there is no work. Whether there is more.

        Raises `EngineFailure` when the engine's books are wrong: better a new engine than somebody else's text.
        """
        self.check_integrity()
        self._grammars.prepare()
        self._cache.save_next()
        if self._pre_roll is None or not self._pre_roll.has_work:
            return False
        self._pre_roll.step()
        return self._pre_roll.has_work

    def _expire(self) -> None:
        now_s = self._clock()
        for sequence in self._queue.expired(now_s):
            error = waited_too_long(sequence, now_s, self._announcer.longest_wait_s(self._running))
            self._fail_request(sequence.request.request_id, error)
        for request_id in {one.request.request_id for one in self._all() if one.is_overdue(now_s)}:
            self._time_out(request_id)

    def _time_out(self, request_id: int) -> None:
        """A request's own time is over: what there is of its answers is all of them; without any it fails."""
        sequences = self._of_request(request_id)
        request = sequences[0].request
        if len(sequences) == request.n and not any(sequence.n_generated for sequence in sequences):
            message = f"the timeout of {request.timeout_s:g} s that the request asks for passed before its first token"
            self._fail_request(request_id, QueueTimeout(message, param="timeout"))
            return
        for sequence in sequences:
            self._finish(sequence, StepOutput(), FinishReason.LENGTH)

    def _announce(self) -> None:
        """Tell those that wait, and want to know, when their turn comes; end those whose turn comes too late."""
        for notice in self._announcer.notices(self._running, self._clock()):
            if isinstance(notice, Failed):
                self.abort(notice.request_id)
            self._outbox.put(notice)

    def _admit(self) -> None:
        """Move waiting sequences into the slots that they get, as the policy says.

        Chats are copied for that. What takes longer than a step may is left to the next: those who have a slot need not
        wait until all have one.
        """
        self._build_bans()
        end_s = self._clock() + self._scheduler.max_gap_s
        for sequence in self._admission.admissible():
            self._start(sequence)
            if self._clock() > end_s:
                break
        for newcomer, victim in self._admission.exchanges(self._running):
            if self._preempt(victim):
                self._start(newcomer)
        self._cache.release_copies()

    def _build_bans(self) -> None:
        """A piece of the first list of banned phrases that somebody waits for; several use the same."""
        for sequence in self._queue.waiting():
            if sequence.bans is not None and not sequence.bans.is_ready:
                sequence.bans.build()
                return

    def _shift_context(self) -> None:
        """Make room where a slot is full and its text is to go on: see `engine.slots.context_shift`."""
        for sequence in [one for one in self._running if self._context_shift.is_full(one)]:
            # A sibling may have failed a moment ago.
            if not sequence.is_finished:
                self._drop_older_half(sequence)

    def _drop_older_half(self, sequence: SequenceState) -> None:
        gap = self._context_shift.gap(sequence)
        assert gap is not None, "a full sequence was not ended"
        # While its last guess is still where it was.
        sequence.trust.settle(sequence.tokens)
        try:
            self._cache.shift(sequence, gap.start, gap.n)
        except EngineFailure as error:
            self._lose(sequence, error)
            return
        if sequence.lookup is not None:
            sequence.lookup.restart(len(sequence.tokens))
        told = sequence.request.request_id, gap.n, gap.start
        logger.warning("context shift: request %d goes on without %d tokens behind its first %d", *told)

    def _guess(self) -> None:
        """A sequence that runs alone may be ahead of itself: see `engine.speculation.prompt_lookup`."""
        if len(self._running) != 1 or not self._speculator.is_on:
            return
        sequence = self._running[0]
        # What a grammar holds comes otherwise than guessed, and each row would wait for a mask.
        is_held = sequence.constraint is not None and not sequence.constraint.is_free
        if sequence.lookup is not None and sequence.is_decoding and not is_held:
            start_s = self._clock()
            n_most = self._n_left(sequence) - 1
            sequence.draft = self._speculator.draft(sequence.lookup, sequence.trust, sequence.tokens, n_most)
            self._trace.draft_s = self._clock() - start_s
            # A draft model's time is no gap that a thread too many would explain.
            self._counters.leave_out(self._trace.draft_s)

    def _n_left(self, sequence: SequenceState) -> int:
        """How many tokens may still be sampled."""
        n_left = self._decoder.n_ctx - len(sequence.tokens)
        limit = self._context_shift.limit(sequence.request)
        return n_left if limit is None else min(n_left, limit - sequence.n_generated)

    def _start(self, sequence: SequenceState) -> None:
        self._queue.take(sequence)
        try:
            if sequence.state is None:
                self._begin(sequence)
            else:
                self._cache.resume(sequence)
        except Exception as error:
            self._queue.release(sequence)
            if sequence.slot is not None:
                self._cache.insert(sequence)
            self._end(sequence)
            self._fail_request(sequence.request.request_id, _failure_of(error))
            return
        sequence.status = Status.RUNNING
        self._running.append(sequence)

    def _preempt(self, sequence: SequenceState) -> bool:
        """Running to waiting; sampler, grammar and text stay with it. False when its state cannot be read."""
        try:
            self._cache.suspend(sequence)
        except EngineFailure:
            return False
        self._running.remove(sequence)
        sequence.status = Status.WAITING
        self._queue.put_back(sequence)
        self._counters.preemptions += 1
        return True

    def _begin(self, sequence: SequenceState) -> None:
        if sequence.grammar is not None and sequence.constraint is None:
            sequence.constraint = sequence.grammar.constraint()
        now_s = self._clock()
        self._cache.lock(sequence)
        self._cache.save_ahead(sequence)
        if self._pre_roll is not None and sequence.index == 0:
            sequence.chat = self._pre_roll.begin(sequence.request, sequence.tokens)
        sequence.admit_s = now_s
        self._queue.charge_prompt(sequence)
        self._writer.begin(sequence)
        if self._speculator.is_on:
            sequence.lookup = PromptLookup(sequence.n_prompt)
        self._counters.cached_tokens += sequence.n_cached
        self._outbox.put(Admitted(sequence.request.request_id, sequence.index, sequence.n_cached))

    def _compute(self, plan: list[Chunk]) -> bool:
        """Compute the plan; whether any of it could be.

        What fails is tried again without guesses, then in halves, down to a single row: its request ends then, and
        nobody else's.
        """
        plan = [chunk for chunk in plan if not chunk.sequence.is_finished]
        if not plan:
            return False
        depth = max((sequence.n_past for sequence in self._running), default=0)
        try:
            computed = self._batcher.compute(plan, depth=depth)
        except (NoRoomError, EngineFailure) as error:
            rest = self._rewound(plan)
            return self._compute(rest) if n_rows(rest) < n_rows(plan) else self._compute_halves(rest, error)
        self._advance(computed)
        return True

    def _compute_halves(self, plan: list[Chunk], error: Exception) -> bool:
        if n_rows(plan) > 1:
            first, second = halves(plan)
            is_any_computed = self._compute(first)
            return self._compute(second) or is_any_computed
        for chunk in plan:
            self._lose(chunk.sequence, error)
        return False

    def _rewound(self, plan: list[Chunk]) -> list[Chunk]:
        """The plan after a failed decode, whose rows may be in the cache by halves; what was there before is good.

        What was only guessed is not tried again.
        """
        kept = []
        for chunk in plan:
            try:
                self._cache.rewind(chunk.sequence)
                del chunk.sequence.prompt_logprobs[chunk.sequence.n_past :]
                kept.append(chunk.without_draft())
            except EngineFailure as error:
                self._lose(chunk.sequence, error)
        return kept

    def _advance(self, computed: list[Computed]) -> None:
        """The plan is computed: note that of all first, since one that fails ends its siblings."""
        for chunk, rows, _ in computed:
            sequence = chunk.sequence
            if sequence.request.prompt_logprobs and sequence.is_reading:
                self._writer.note_prompt(sequence, rows)
            sequence.n_past += chunk.n_tokens - len(sequence.draft)
            if sequence.marks and sequence.n_past == sequence.marks[0]:
                del sequence.marks[0]
                self._cache.keep_snapshot(sequence)
        for chunk, rows, last_row in computed:
            if not chunk.sequence.is_finished:
                self._go_on(chunk.sequence, rows, last_row)

    def _go_on(self, sequence: SequenceState, rows: Rows, row: int) -> None:
        """Take the next token if the logits for it are there."""
        if sequence.n_past < len(sequence.tokens):
            if not sequence.n_generated:
                self._outbox.put_progress(sequence, self._clock())
            return
        try:
            if sequence.draft:
                self._next_tokens(sequence, rows, row)
            else:
                self._next_token(sequence, rows[-1], row)
        except NoNumbers as error:
            self._discard(sequence, error)
        except Exception as error:
            self._fail_request(sequence.request.request_id, _failure_of(error))

    def _next_tokens(self, sequence: SequenceState, rows: Rows, last_row: int) -> None:
        """Sample as many tokens as were guessed, until one comes differently; the rest of the guess is forgotten."""
        draft, sequence.draft = sequence.draft, ()
        sequence.n_drafted += len(draft)
        first_row = last_row - len(draft)
        for position, guessed in enumerate(draft):
            n_tokens = len(sequence.tokens)
            self._next_token(sequence, rows[position], first_row + position)
            if sequence.is_finished or len(sequence.tokens) != n_tokens + 1 or sequence.tokens[-1] != guessed:
                break
            sequence.n_past += 1
            sequence.n_accepted += 1
        else:
            self._next_token(sequence, rows[-1], last_row)
            return
        if not sequence.is_finished:
            self._cache.rewind(sequence)

    def _next_token(self, sequence: SequenceState, row: Row, batch_row: int) -> None:
        """Take the next token, say what may be said, and finish the sequence if this was its last."""
        if not sequence.first_token_s:
            self._first_token(sequence)
        said = self._writer.write(sequence, row, batch_row)
        if said.reason is not None:
            self._finish(sequence, said, said.reason)
        elif said.text or said.items:
            self._outbox.put_text(sequence, said)

    def _first_token(self, sequence: SequenceState) -> None:
        sequence.first_token_s = self._clock()
        self._outbox.put_progress(sequence, self._clock())
        if sequence.request.prompt_logprobs:
            entries = tuple(sequence.prompt_logprobs)
            self._outbox.put(PromptLogprobs(sequence.request.request_id, sequence.index, entries))

    # --- ends -------------------------------------------------------------------------------------------------------

    def _finish(self, sequence: SequenceState, said: StepOutput, reason: FinishReason) -> None:
        """To finished, with its last words."""
        rest = sequence.detokenizer.flush()
        usage = sequence.usage(self._clock())
        finish = Finish(reason, usage, sequence.detokenizer.stop, said.end)
        self._leave(sequence)
        self._forecast.note_answer(sequence, usage.tokens_per_s)
        said.add(rest)
        self._outbox.put_text(sequence, said, finish)

    def _leave(self, sequence: SequenceState) -> None:
        """Waiting or running to finished; the computed tokens stay in the slot as cache."""
        if sequence.status is Status.WAITING:
            self._queue.remove(sequence)
            self._end(sequence)
            return
        if self._pre_roll is not None and sequence.chat is not None:
            self._pre_roll.end(sequence.chat, sequence)
        self._cache.insert(sequence)
        self._retire(sequence)

    def _retire(self, sequence: SequenceState) -> None:
        self._running.remove(sequence)
        self._queue.release(sequence)
        self._counters.note_end(sequence)
        self._end(sequence)

    def _end(self, sequence: SequenceState) -> None:
        sequence.status = Status.FINISHED
        sequence.state = None
        if sequence.sampler is not None:
            sequence.sampler.close()
            sequence.sampler = None

    def _lose(self, sequence: SequenceState, error: Exception) -> None:
        """What its slot holds cannot be trusted: the request fails, and nothing of it is kept."""
        self._cache.forget(sequence)
        self._retire(sequence)
        why = f"computing this request failed: {error}" if str(error) else "the context has no room for this request"
        self._fail_request(sequence.request.request_id, EngineFailure(why))

    def _discard(self, sequence: SequenceState, error: EngineFailure) -> None:
        """The request fails; nothing of it is kept, nor of what it went on from: the same would come of it again."""
        for one in self._of_request(sequence.request.request_id):
            if one.slot is not None:
                self._cache.discard(one)
                self._retire(one)
        self._fail_request(sequence.request.request_id, error)

    def _note_health(self, is_any_computed: bool) -> None:
        """A device that has failed for good stays so until its process is gone: leave, to be started again."""
        self._n_lost_steps = 0 if is_any_computed else self._n_lost_steps + 1
        if self._n_lost_steps >= _MAX_LOST_STEPS:
            raise EngineFailure(f"nothing could be computed in {_MAX_LOST_STEPS} steps one after another")

    def _fail_request(self, request_id: int, error: GgufdError) -> None:
        self.abort(request_id)
        self._fail(request_id, error)

    def _fail(self, request_id: int, error: GgufdError) -> None:
        self._outbox.put(Failed.by(request_id, error))

    # --- what is said -----------------------------------------------------------------------------------------------

    def _all(self) -> list[SequenceState]:
        """Those that wait, then those that run."""
        return [*self._queue.waiting(), *self._running]

    def _of_request(self, request_id: int) -> list[SequenceState]:
        return [sequence for sequence in self._all() if sequence.request.request_id == request_id]

    def queue_state(self) -> QueueState:
        """Every request under way, and when those that wait have their turn."""
        written = self._announcer.state(self._running, self._clock())
        return QueueState((*written.entries, *self._embedder.entries()))

    def steps(self) -> Steps:
        """The last steps, and where their time went."""
        return Steps(self._trace.records)

    def note_sent(self, seconds: float) -> None:
        """What the last step said was sent, in so many seconds."""
        self._trace.sent(seconds)

    def stats(self) -> Stats:
        """A snapshot: who waits, who runs, what was computed, what the slots hold."""
        counters, cache = self._counters, self._cache
        return Stats(
            waiting=len(self._queue) + self._embedder.n_waiting,
            running=len(self._running),
            steps=counters.steps,
            computed_tokens=counters.computed_tokens,
            cached_tokens=counters.cached_tokens,
            generated_tokens=counters.generated_tokens,
            step_s=counters.step_s,
            step_gap_s=counters.step_gap_s,
            slots=tuple(_slot_state(slot.index, slot.sequence, slot.n_computed) for slot in cache.slots),
            preemptions=counters.preemptions,
            busy_slots=counters.busy_slots,
            longest=counters.longest,
            drafted_tokens=counters.drafted_tokens,
            accepted_tokens=counters.accepted_tokens,
            model_drafted_tokens=counters.model_drafted_tokens,
            model_accepted_tokens=counters.model_accepted_tokens,
            evictions=cache.n_evicted,
            restores=cache.n_restored,
            host_evictions=cache.host.n_evicted,
            failed_restores=cache.n_failed_restores + self._speculator.n_dropped,
            host_bytes=cache.host.n_bytes,
            embedded_tokens=self._embedder.n_tokens,
            step_seconds=counters.steps_spread.spread,
            step_gap_seconds=counters.step_gaps.spread,
            token_gap_seconds=counters.token_gaps.spread,
            batch_rows=counters.batches.spread,
        )

    def check_integrity(self) -> None:
        """Raise `EngineFailure` unless queue, running sequences and slots agree."""
        self._cache.check_integrity()
        self._embedder.check_integrity()
        in_slots = {id(slot.sequence) for slot in self._cache.running}
        if in_slots != {id(sequence) for sequence in self._running}:
            raise EngineFailure("the running sequences are not those in the slots")
        if any(sequence.status is not Status.RUNNING for sequence in self._running):
            raise EngineFailure("a sequence runs without being in the running state")
        self._queue.check_integrity(self._running, self._embedder.standing)


def _failure_of(error: Exception) -> GgufdError:
    """What a request is told: one that stumbles over its own numbers takes nobody else along.

    A failed assertion says that our books are wrong, which is not the request's matter: it is raised again.
    """
    if isinstance(error, AssertionError):
        raise error
    if isinstance(error, GgufdError):
        return error
    logger.exception("a request failed")
    return EngineFailure(f"this request could not be computed ({type(error).__name__}: {error})")


def _slot_state(index: int, sequence: SequenceState | None, n_past: int) -> SlotState:
    if sequence is None:
        return SlotState(index, None, n_past, n_past)
    return SlotState(index, sequence.request.request_id, len(sequence.tokens), n_past)
