"""Vectors of texts, computed between the steps of those who write: who waits, who is computed, in what pieces.

Requests are few at once and take turns, so that a list of a thousand texts does not hold up one question: the next
text is of the account that was served least, in the same book that those who write are charged in. Every account may
have one request under way. A text that may be computed in pieces is, so that nobody's stream pauses for longer than it
may. A context has one set of LoRA adapters at a time: texts under other ones begin when those under way are done.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from server.engine.backend import VectorDecoder
from server.engine.fairness import Accounts, Standing
from server.engine.messages import Admitted, Embedding, EmbedRequest, Event, Failed, QueueEntry, Scales, Turn
from server.engine.pooling import Pool, new_pool, scaled
from server.errors import ContextLengthExceeded, EngineFailure, GgufdError, InvalidRequest, QueueTimeout
from server.llama.batch import NoRoomError
from server.llama.params import Pooling

AT_ONCE = 4
"""Requests that take turns; more wait, but for the first of an account."""

_MIN_PIECE = 16
_FIRST_PIECE = 64
"""Tokens of the first batch, which tells what a token takes."""

_PACK = 512
"""Tokens of short texts that are computed together when there is time."""

_ALONE_S = 1.2
"""Seconds that a batch may take when nobody waits for its end: so long waits who comes meanwhile."""

_SMOOTHING = 0.3


@dataclass(slots=True, eq=False)
class _Job:
    """One request: inputs `[0, n_begun)` are or were computed. Seconds of the embedder's clock."""

    request: EmbedRequest
    arrival_s: float
    n_begun: int = 0
    n_done: int = 0

    @property
    def has_more(self) -> bool:
        return self.n_begun < self.request.n

    @property
    def account(self) -> str:
        return self.request.account

    @property
    def adapters(self) -> Scales:
        return self.request.adapters

    @property
    def n_tokens_left(self) -> int:
        """Of texts that nobody turned to yet."""
        return sum(map(len, self.request.inputs[self.n_begun :]))


@dataclass(slots=True, eq=False)
class _Input:
    """One text that is being computed as sequence `sequence`: its first `n_past` tokens are."""

    job: _Job
    index: int
    sequence: int
    pool: Pool | None
    n_past: int = 0

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.job.request.inputs[self.index]

    @property
    def n_left(self) -> int:
        return len(self.tokens) - self.n_past


@dataclass(frozen=True, slots=True)
class _Piece:
    """`n_tokens` of one input, in the batch from row `first` on."""

    input: _Input
    first: int
    n_tokens: int


@dataclass(frozen=True, slots=True)
class EmbedderParams:
    """What an embedder must know before its context is made. Waits in seconds, `n_ctx` in tokens."""

    pooling: Pooling
    n_ctx: int
    n_vocab: int
    n_adapters: int = 0
    max_wait_s: float = 600.0


@dataclass(slots=True)
class Embedder:
    """Computes `EmbedRequest`s on a context of its own, which `make` makes when the first one comes.

    `make` may raise `GgufdError`: that request fails, and the next one tries again.
    """

    params: EmbedderParams
    make: Callable[[], VectorDecoder]
    accounts: Accounts = field(default_factory=Accounts)
    clock: Callable[[], float] = time.perf_counter
    n_tokens: int = 0
    _decoder: VectorDecoder | None = None
    _waiting: deque[_Job] = field(default_factory=deque)
    _open: deque[_Job] = field(default_factory=deque)
    _active: list[_Input] = field(default_factory=list)
    _events: list[Event] = field(default_factory=list)
    _s_per_token: float = 0.0

    # --- requests ---------------------------------------------------------------------------------------------------

    def add(self, request: EmbedRequest) -> None:
        """Queue a request. Raises what is wrong with it."""
        if not request.inputs or not all(request.inputs):
            raise InvalidRequest("an embedding needs at least one token of each input", param="input")
        longest = max(map(len, request.inputs))
        if longest > self.params.n_ctx:
            raise ContextLengthExceeded.of_input(longest, self.params.n_ctx)
        if not all(0 <= token < self.params.n_vocab for tokens in request.inputs for token in tokens):
            raise InvalidRequest("a token is not in the vocabulary", param="input")
        if len(request.adapters) not in (0, self.params.n_adapters):
            raise InvalidRequest(f"there are {self.params.n_adapters} adapters", param="lora")
        self._waiting.append(_Job(request, self.clock()))
        self.accounts.wait(request.account)

    def abort(self, request_id: int) -> None:
        """End a request now, wherever it is. Unknown ids are fine."""
        for job in [job for job in (*self._waiting, *self._open) if job.request.request_id == request_id]:
            self._end(job)

    def _end(self, job: _Job) -> None:
        """The request neither waits nor runs any more."""
        for one in [one for one in self._active if one.job is job]:
            self._release(one)
        if job.has_more:
            self.accounts.settle(job.account)
        if job in self._waiting:
            self._waiting.remove(job)
        else:
            self._open.remove(job)
            self.accounts.rest(job.account)

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._open or self._events)

    @property
    def n_waiting(self) -> int:
        """Requests that the next step does not begin."""
        return len(self._waiting) - len(self._beginners(self._waiting))

    def would_begin(self, request: EmbedRequest) -> bool:
        """Whether the next step would begin this request, if it came now."""
        job = _Job(request, self.clock())
        return job in self._beginners([*self._waiting, job])

    @property
    def running(self) -> Iterator[EmbedRequest]:
        """The requests that take turns."""
        return (job.request for job in self._open)

    def entries(self) -> Iterator[QueueEntry]:
        """Every request under way: those that run, then those that wait, as the first of whom they will begin.

        A wait is until all texts before it are computed, if nobody writes meanwhile.
        """
        now_s, n_before = self.clock(), 0
        waiting = sorted(self._waiting, key=lambda job: self.accounts.counters[job.account])
        for position, job in enumerate((*self._open, *waiting), start=1 - len(self._open)):
            yield _entry(job, now_s, Turn(position, n_before * self._s_per_token) if position > 0 else None)
            n_before += job.n_tokens_left

    @property
    def standing(self) -> Standing:
        """Whose requests have texts that nobody turned to yet, and whose run."""
        waiting = Counter(job.account for job in (*self._waiting, *self._open) if job.has_more)
        return Standing(waiting, Counter(job.account for job in self._open))

    # --- the step ---------------------------------------------------------------------------------------------------

    def step(self, pause_s: float | None = None) -> list[Event]:
        """Compute one batch, of about `pause_s` seconds where somebody waits for its end; returns what happened."""
        self._expire()
        self._begin_jobs()
        if self._open:
            self._compute(pause_s)
        events, self._events = self._events, []
        return events

    def prepare(self) -> VectorDecoder:
        """The context, made now if there is none. Raises `GgufdError` when it cannot be."""
        if self._decoder is None:
            self._decoder = self.make()
        return self._decoder

    def _expire(self) -> None:
        now_s = self.clock()
        for job in tuple(self._waiting):
            asked = job.request.max_queue_wait_s
            limit_s = self.params.max_wait_s if asked is None else min(asked, self.params.max_wait_s)
            if now_s - job.arrival_s > limit_s:
                waited = f"the request waited {now_s - job.arrival_s:.0f} s in the queue, as long as it may"
                self._fail(job, QueueTimeout(f"{waited}; try again later"))

    def _begin_jobs(self) -> None:
        for job in self._beginners(self._waiting):
            self._waiting.remove(job)
            self._open.append(job)
            self.accounts.run(job.account)
            self._events.append(Admitted(job.request.request_id, 0, 0))

    def _beginners(self, waiting: Iterable[_Job]) -> list[_Job]:
        """Who of those that wait begins now: whose account has fewest under way, then whose was served least."""
        busy, running = Counter(job.account for job in self._open), self.accounts.running.copy()
        found: list[_Job] = []
        able = list(waiting)
        while able := [job for job in able if _may_begin(job, busy, running)]:
            job = min(able, key=lambda job: (busy[job.account], self.accounts.counters[job.account]))
            able.remove(job)
            found.append(job)
            busy[job.account] += 1
            running[job.account] += 1
        return found

    def _compute(self, pause_s: float | None) -> None:
        try:
            decoder = self.prepare()
        except GgufdError as error:
            for job in tuple(self._open):
                self._fail(job, EngineFailure(f"{error.message}; is there enough memory?"))
            return
        pieces = self._fill(decoder, self._budget(decoder, pause_s))
        decoder.set_adapters(pieces[0].input.job.adapters)
        try:
            seconds = decoder.decode()
        except (NoRoomError, EngineFailure) as error:
            self._fail_batch(pieces, error)
            return
        n_rows = decoder.batch.n_rows
        self.n_tokens += n_rows
        self._learn(seconds / n_rows)
        self._advance(decoder, pieces)

    def _budget(self, decoder: VectorDecoder, pause_s: float | None) -> int:
        """Tokens of the next batch. One that cannot be computed in pieces may take more."""
        most = min(decoder.n_batch, _PACK)
        if self._s_per_token == 0:
            return min(most, _FIRST_PIECE if pause_s is None else _MIN_PIECE)
        affordable = int((_ALONE_S if pause_s is None else pause_s) / self._s_per_token)
        return max(_MIN_PIECE, min(most, affordable))

    def _learn(self, s_per_token: float) -> None:
        known = self._s_per_token or s_per_token
        self._s_per_token = known + _SMOOTHING * (s_per_token - known)

    def _fill(self, decoder: VectorDecoder, budget: int) -> list[_Piece]:
        """Write the next pieces into the batch: of inputs under way, then of new ones, each request in its turn."""
        decoder.batch.clear()
        pieces = [_add(decoder, one, budget) for one in self._active if decoder.batch.n_rows < budget]
        job = self._next_job()
        # Who is next but under other adapters does not wait for more of these to begin.
        while job is not None and self._shares_adapters(job):
            if not self._has_room(decoder, len(job.request.inputs[job.n_begun]), budget):
                break
            pieces.append(_add(decoder, self._begin(decoder, job), budget))
            # The next one is another request's.
            self._open.remove(job)
            self._open.append(job)
            job = self._next_job(job.adapters)
        return pieces

    def _shares_adapters(self, job: _Job) -> bool:
        """Whether texts of this request may be computed beside those that are."""
        return not self._active or self._active[0].job.adapters == job.adapters

    def _next_job(self, adapters: Scales | None = None) -> _Job | None:
        """The request whose next text comes next: of the account that was served least, in turns among its own.

        Only of those under `adapters`, if it is said.
        """
        able = [job for job in self._open if job.has_more and adapters in (None, job.adapters)]
        return min(able, key=lambda job: self.accounts.counters[job.account], default=None)

    def _has_room(self, decoder: VectorDecoder, n_tokens: int, budget: int) -> bool:
        """Whether one more input may begin in this batch: cells of the whole of it are there, and a sequence."""
        left = budget - decoder.batch.n_rows
        n_cells = sum(len(one.tokens) for one in self._active)
        if len(self._active) == decoder.n_inputs or n_cells + n_tokens > decoder.n_ctx:
            return False
        return left > 0 if decoder.can_split else left >= n_tokens or decoder.batch.n_rows == 0

    def _begin(self, decoder: VectorDecoder, job: _Job) -> _Input:
        taken = {one.sequence for one in self._active}
        sequence = next(number for number in range(decoder.n_inputs) if number not in taken)
        pool = None if self.params.pooling == "rank" else new_pool(self.params.pooling)
        one = _Input(job, job.n_begun, sequence, pool)
        job.n_begun += 1
        self._active.append(one)
        self.accounts.charge_prompt(job.account, len(one.tokens), job.request.limits)
        if not job.has_more:
            self.accounts.settle(job.account)
        return one

    def _advance(self, decoder: VectorDecoder, pieces: list[_Piece]) -> None:
        """The batch is computed: pool its rows, and send what is whole."""
        rows = None if self.params.pooling == "rank" else decoder.rows()
        for piece in pieces:
            one = piece.input
            one.n_past += piece.n_tokens
            if one.pool is not None and rows is not None:
                one.pool.add(rows[piece.first : piece.first + piece.n_tokens])
            # One whose sibling failed a moment ago is gone.
            if one.n_left == 0 and one in self._active:
                self._finish(decoder, one)

    def _finish(self, decoder: VectorDecoder, one: _Input) -> None:
        request = one.job.request
        if one.pool is None:
            vectors = decoder.scores(one.sequence)
        else:
            vectors = scaled(one.pool.result()[:, : request.dimensions], request.norm)
        if not np.isfinite(vectors).all():
            self._fail(one.job, EngineFailure("the model made numbers of this text that are none"))
            return
        data = np.ascontiguousarray(vectors, "<f4").tobytes()
        self._events.append(Embedding(request.request_id, one.index, data, vectors.shape[1], len(one.tokens)))
        self._release(one)
        one.job.n_done += 1
        if one.job.n_done == request.n:
            self._end(one.job)

    # --- ends -------------------------------------------------------------------------------------------------------

    def _release(self, one: _Input) -> None:
        """Computed or not, it needs its sequence no more; what was not is given back."""
        self._active.remove(one)
        self.accounts.charge_prompt(one.job.account, -one.n_left, one.job.request.limits)
        if self._decoder is not None:
            self._decoder.forget(one.sequence)

    def _fail_batch(self, pieces: list[_Piece], error: Exception) -> None:
        """Nothing of the batch can be trusted: its requests fail, the others go on."""
        failure = EngineFailure(f"computing a batch failed: {error}" if str(error) else "the context has no room")
        for job in {piece.input.job for piece in pieces}:
            self._fail(job, failure)

    def _fail(self, job: _Job, error: GgufdError) -> None:
        self.abort(job.request.request_id)
        self._events.append(Failed.by(job.request.request_id, error))

    def check_integrity(self) -> None:
        """Raise `EngineFailure` unless requests, inputs and sequences agree."""
        if any(one.job not in self._open for one in self._active):
            raise EngineFailure("an input is computed whose request has ended")
        if len({one.sequence for one in self._active}) != len(self._active):
            raise EngineFailure("two inputs are computed as one sequence")
        if not all(self._shares_adapters(one.job) for one in self._active):
            raise EngineFailure("inputs under different adapters are computed together")
        for job in self._open:
            n_active = sum(1 for one in self._active if one.job is job)
            if job.n_done + n_active != job.n_begun or job.n_done >= job.request.n:
                raise EngineFailure("a request for embeddings has lost count of its inputs")


def _may_begin(job: _Job, busy: Counter[str], running: Counter[str]) -> bool:
    """Whether there is a place, which an account's first request always has, and its account may run one more."""
    limit = job.request.limits.max_running
    has_place = busy.total() < AT_ONCE or not busy[job.account]
    return has_place and (limit is None or running[job.account] < limit)


def _entry(job: _Job, now_s: float, turn: Turn | None) -> QueueEntry:
    request = job.request
    return QueueEntry(
        request_id=request.request_id,
        key=request.key,
        asker=request.asker,
        priority=0,
        age_s=now_s - job.arrival_s,
        prompt_tokens=sum(map(len, request.inputs)),
        generated_tokens=0,
        turn=turn,
    )


def _add(decoder: VectorDecoder, one: _Input, budget: int) -> _Piece:
    """Write as much of an input into the batch as the budget has left, all of one that may not be cut."""
    first = decoder.batch.n_rows
    n = min(one.n_left, budget - first) if decoder.can_split else one.n_left
    decoder.batch.add(one.sequence, one.tokens[one.n_past : one.n_past + n], one.n_past, n)
    return _Piece(one, first, n)
