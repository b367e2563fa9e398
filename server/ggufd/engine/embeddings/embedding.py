"""Embedding requests: admission, turn-taking and answers, between the steps of the decoding sequences.

Few requests are open at once and take turns, so that a list of a thousand inputs does not hold up a single one: the
next input is of the account that was served least, in the same book that decoding sequences are charged in. Every
account may have one request open. Background work begins where no other request is open. Batches are made by
`batcher`, the order of waiting requests by `waiting_list`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ggufd.engine.backend.interfaces import VectorDecoder
from ggufd.engine.embeddings.batcher import BatchFailed, EmbeddingBatcher
from ggufd.engine.embeddings.inputs import ActiveInput, InputList
from ggufd.engine.embeddings.pooling import scaled
from ggufd.engine.messages.events import Admitted, Embedding, Failed, Turn
from ggufd.engine.messages.reports import Event, QueueEntry
from ggufd.engine.messages.requests import EmbedRequest, Scales
from ggufd.engine.queueing.fairness import Accounts, Standing
from ggufd.engine.queueing.validation import RequestBounds, check_embed_request
from ggufd.engine.queueing.waiting_list import WaitingList, waited_too_long
from ggufd.errors import EngineFailure, GgufdError
from ggufd.llama.params import Pooling

MAX_OPEN = 4
"""Requests that take turns; more wait, but for the first of an account."""


@dataclass(frozen=True, slots=True)
class EmbedderParams:
    """Parameters of an embedder, known before its context is made. `n_ctx` in tokens."""

    pooling: Pooling
    n_ctx: int
    n_vocab: int
    n_adapters: int = 0


class Embedder:
    """Computes `EmbedRequest`s on a context of its own, which `make` makes when the first one comes.

    `make` may raise `GgufdError`: that request fails, and the next one tries again.
    """

    def __init__(
        self,
        params: EmbedderParams,
        make: Callable[[], VectorDecoder],
        queue: WaitingList[InputList],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.accounts = queue.accounts
        self._params = params
        self._bounds = RequestBounds(params.n_ctx, params.n_vocab, params.n_adapters)
        self._make = make
        self._queue = queue
        self._clock = clock
        self._batcher: EmbeddingBatcher | None = None
        self._open: list[InputList] = []
        self._events: list[Event] = []

    # --- requests ---------------------------------------------------------------------------------------------------

    def add(self, request: EmbedRequest) -> None:
        """Queue a request. Raises what is wrong with it."""
        check_embed_request(request, self._bounds)
        self._queue.push([InputList(request, self._clock())])

    def abort(self, request_id: int) -> None:
        """End a request now, wherever it is. Unknown ids are fine."""
        for owner in self._queue.of_request(request_id):
            self._queue.drop(owner)
        for owner in [one for one in self._open if one.request.request_id == request_id]:
            self._close(owner)

    @property
    def has_work(self) -> bool:
        return bool(self._queue or self._open or self._events)

    @property
    def is_held(self) -> bool:
        """Whether requests wait, and all for what their accounts hold at other servers of a cluster."""
        is_busy = bool(self._open or self._events)
        held = (not self.accounts.may_run(one.request.principal) for one in self._queue.waiting())
        return not is_busy and bool(self._queue) and all(held)

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for vectors that are being computed."""
        return any(not owner.request.principal.is_background for owner in self._open)

    @property
    def n_tokens(self) -> int:
        """Tokens that were computed."""
        return 0 if self._batcher is None else self._batcher.n_tokens

    @property
    def n_waiting(self) -> int:
        """Requests that the next step does not open, background work apart."""
        places = _Places(self._open, self.accounts)
        in_order = [one.request for one in self._queue if not one.request.principal.is_background]
        return len(self._queue) - self._queue.n_background - sum(map(places.take, in_order))

    @property
    def running(self) -> Iterator[EmbedRequest]:
        """The requests that take turns."""
        return (owner.request for owner in self._open)

    def entries(self) -> Iterator[QueueEntry]:
        """Every request under way: those that are open, then those that wait, in the foreseen order.

        The wait is until all inputs before it are computed, if no sequence decodes meanwhile.
        """
        s_per_token = 0.0 if self._batcher is None else self._batcher.s_per_token
        now_s, n_before = self._clock(), 0
        waiting = self._queue.foreseen_order(lambda one: self.accounts.prompt_cost * one.n_tokens_left)
        for position, owner in enumerate((*self._open, *waiting), start=1 - len(self._open)):
            yield owner.entry(now_s, Turn(position, n_before * s_per_token) if position > 0 else None)
            n_before += owner.n_tokens_left

    @property
    def standing(self) -> Standing:
        """Accounts of the requests with inputs that have not begun, and of the open ones."""
        counted = [owner for owner in self._open if not owner.request.principal.is_background]
        waiting = Counter(owner.account for owner in counted if owner.has_more)
        return Standing(self._queue.count() + waiting, Counter(owner.account for owner in counted))

    # --- the step ---------------------------------------------------------------------------------------------------

    def step(self, pause_s: float | None = None) -> list[Event]:
        """Compute one batch, of about `pause_s` seconds where a sequence waits for its end; returns what happened."""
        now_s = self._clock()
        for owner in self._queue.expired(now_s):
            self._fail(owner, waited_too_long(owner, now_s))
        self._open_requests()
        if self._open:
            self._compute(pause_s)
        events, self._events = self._events, []
        return events

    def prepare(self) -> EmbeddingBatcher:
        """The batches of the context, which is made now if there is none. Raises `GgufdError` when it cannot be."""
        if self._batcher is None:
            self._batcher = EmbeddingBatcher(self._make(), self._params.pooling)
        return self._batcher

    def _open_requests(self) -> None:
        places = _Places(self._open, self.accounts)
        for owner in [one for one in self._queue if places.take(one.request)]:
            # Its inputs wait on for it. Counted before it leaves the queue, or its account would begin to wait anew.
            self.accounts.wait(owner.account)
            self._queue.take(owner)
            owner.is_open = True
            self._open.append(owner)
            self._events.append(Admitted(owner.request.request_id, 0, 0))

    def _compute(self, pause_s: float | None) -> None:
        try:
            batcher = self.prepare()
        except GgufdError as error:
            for owner in tuple(self._open):
                self._fail(owner, EngineFailure(f"{error.message}; is there enough memory?"))
            return
        try:
            finished = batcher.compute(self, pause_s)
        except BatchFailed as failure:
            for owner in failure.owners:
                self._fail(owner, EngineFailure(str(failure)))
            return
        for one in finished:
            # One whose sibling failed a moment ago is gone.
            if one in batcher.active:
                self._finish(batcher, one)

    def next_owner(self, adapters: Scales | None) -> InputList | None:
        """The open request whose next input comes next: of the account that was served least, in turns among its own.

        Only of those under `adapters`, if it is given, and of background work only where nobody waits.
        """
        is_awaited = self.is_awaited
        able = [
            owner
            for owner in self._open
            if owner.has_more
            and adapters in (None, owner.adapters)
            and not (is_awaited and owner.request.principal.is_background)
        ]
        return min(able, key=lambda owner: self.accounts.counters[owner.account], default=None)

    def begin(self, owner: InputList) -> int:
        """Charge the next input of an open request, whose computation begins; returns its index."""
        index, n_tokens = owner.n_begun, len(owner.next_input)
        owner.n_begun += 1
        self.accounts.charge_prompt(owner.request.principal, n_tokens)
        if not owner.has_more:
            self.accounts.settle(owner.account)
        # The next one is another request's.
        self._open.remove(owner)
        self._open.append(owner)
        return index

    def _finish(self, batcher: EmbeddingBatcher, one: ActiveInput) -> None:
        owner, request = one.owner, one.owner.request
        vectors = batcher.result(one)
        if one.pool is not None:
            vectors = scaled(vectors[:, : request.dimensions], request.norm)
        if not np.isfinite(vectors).all():
            self._fail(owner, EngineFailure("the model computed NaN or infinity for this input"))
            return
        data = np.ascontiguousarray(vectors, "<f4").tobytes()
        self._events.append(Embedding(request.request_id, one.index, data, vectors.shape[1], len(one.tokens)))
        self._release(one)
        owner.n_done += 1
        if owner.n_done == request.n:
            self._close(owner)

    # --- ends -------------------------------------------------------------------------------------------------------

    def _close(self, owner: InputList) -> None:
        """Close an open request."""
        for one in [one for one in self._active if one.owner is owner]:
            self._release(one)
        if owner.has_more:
            self.accounts.settle(owner.account)
        self._open.remove(owner)
        self.accounts.rest(owner.account)

    @property
    def _active(self) -> list[ActiveInput]:
        return [] if self._batcher is None else self._batcher.active

    def _release(self, one: ActiveInput) -> None:
        """Release the sequence of an input; the charge for what was not computed is given back."""
        assert self._batcher is not None
        self._batcher.release(one)
        self.accounts.charge_prompt(one.owner.request.principal, -one.n_left)

    def _fail(self, owner: InputList, error: GgufdError) -> None:
        self.abort(owner.request.request_id)
        self._events.append(Failed.by(owner.request.request_id, error))

    def check_integrity(self) -> None:
        """Raise `EngineFailure` unless requests, inputs and sequences agree."""
        if self._batcher is not None:
            self._batcher.check_integrity()
        if any(one.owner not in self._open for one in self._active):
            raise EngineFailure("an input is computed whose request has ended")
        for owner in self._open:
            n_active = sum(1 for one in self._active if one.owner is owner)
            if owner.n_done + n_active != owner.n_begun or owner.n_done >= owner.request.n:
                raise EngineFailure("a request for embeddings has lost count of its inputs")


class _Places:
    """Places for open requests: `MAX_OPEN`, and the first of every account, within the account's limits.

    Background work has as many while no other request is open, and takes none away.
    """

    def __init__(self, opened: list[InputList], accounts: Accounts) -> None:
        self._opened = Counter(owner.account for owner in opened if not owner.request.principal.is_background)
        self._n_background = len(opened) - self._opened.total()
        self._running = accounts.counted

    def take(self, request: EmbedRequest) -> bool:
        """Take a place for a request, if there is one."""
        account, limit = request.principal.account, request.principal.limits.max_running
        if request.principal.is_background:
            if self._opened.total() or self._n_background >= MAX_OPEN:
                return False
            self._n_background += 1
            return True
        has_place = self._opened.total() < MAX_OPEN or not self._opened[account]
        if not has_place or (limit is not None and self._running[account] >= limit):
            return False
        self._opened[account] += 1
        self._running[account] += 1
        return True
