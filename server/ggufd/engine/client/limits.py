"""Limits at the submission of a request: the queue's length, and of an account waiting requests and tokens per minute.

Rate limiting is a token bucket for each account, which holds a minute's worth and fills steadily. What a request takes
is known only when it was computed, so an account may start requests as long as its bucket is not empty, and waits
afterwards until the debt is paid. Policy alone: knows no engine and no HTTP.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from ggufd.engine.client.open_requests import OpenRequests, n_held, n_waiting
from ggufd.engine.messages.events import Admitted, Embedding, Output, RequestEvent
from ggufd.engine.messages.requests import EmbedRequest, EngineRequest
from ggufd.errors import QueueFull, TooManyRequests
from ggufd.keys.ring import Limits

_MINUTE_S = 60.0
_SWEEP_EVERY = 256
"""Number of buckets at which those that are full again are dropped."""


class TokenBuckets:
    """Token buckets of the accounts that have a limit and took something lately. Times in seconds, of `clock`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._full_at: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._full_at)

    def charge(self, account: str, limits: Limits, n_tokens: int) -> None:
        """Take tokens out, more than there are if need be. Does nothing where there is no limit."""
        if limits.tokens_per_minute is None or n_tokens == 0:
            return
        now_s = self._clock()
        if len(self._full_at) >= _SWEEP_EVERY:
            self._full_at = {name: full_s for name, full_s in self._full_at.items() if full_s > now_s}
        full_at = max(now_s, self._full_at.get(account, now_s))
        self._full_at[account] = full_at + n_tokens * _MINUTE_S / limits.tokens_per_minute

    def wait_s(self, account: str, limits: Limits) -> float:
        """Time until there are tokens in the bucket again; 0 when there are."""
        if limits.tokens_per_minute is None:
            return 0.0
        # A bucket that is full a minute from now is empty.
        return max(0.0, self._full_at.get(account, 0.0) - self._clock() - _MINUTE_S)


class SubmissionLimits:
    """Backpressure at the submission: what is refused at once, so that nothing piles up in the engine.

        QueueFull        as many requests wait as `max_queue` allows, whoever sent them
        TooManyRequests  the account has used its tokens per minute, or has as many waiting as it may

    Free slots count: the next step takes as many of those that wait.
    """

    def __init__(self, requests: OpenRequests, max_queue: int, buckets: TokenBuckets | None = None) -> None:
        self._requests = requests
        self._max_queue = max_queue
        # Empty ones are false.
        self._buckets = TokenBuckets() if buckets is None else buckets

    def is_full(self, n_slots: int) -> bool:
        """Whether as many requests wait as may: one more would be refused."""
        return self._requests.n_waiting >= self._max_queue + self._requests.n_free(n_slots)

    def check(self, request: EngineRequest | EmbedRequest, n_slots: int) -> None:
        """Raises TooManyRequests or QueueFull where the request cannot be taken by an engine of `n_slots` slots."""
        wait_s = self._buckets.wait_s(request.principal.account, request.principal.limits)
        if wait_s > 0:
            raise TooManyRequests(
                f"this key has used its {request.principal.limits.tokens_per_minute} tokens per minute; "
                f"try again in {math.ceil(wait_s)} s",
                retry_after_s=wait_s,
            )
        if self.is_full(n_slots) and not request.principal.is_background:
            n_waiting = self._requests.n_waiting
            retry_after_s = self._requests.wait_s(n_waiting + 1, n_slots)
            raise QueueFull(
                f"the queue is full: {n_waiting} requests are waiting. Try again in {math.ceil(retry_after_s)} s, "
                "or start the server with a larger --max-queue",
                retry_after_s=retry_after_s,
            )
        if request.principal.limits.max_waiting is not None:
            self._check_waiting(request, n_slots, request.principal.limits.max_waiting)

    def _check_waiting(self, request: EngineRequest | EmbedRequest, n_slots: int, most: int) -> None:
        limits = request.principal.limits
        own = [stream for stream in self._requests if stream.request.principal.account == request.principal.account]
        waiting = n_waiting(own)
        n_own = n_slots if limits.max_running is None else min(limits.max_running, n_slots)
        n_free = min(self._requests.n_free(n_slots), max(0, n_own - n_held(own)))
        if waiting >= most + n_free:
            retry_after_s = self._requests.wait_s(waiting + 1, n_own)
            raise TooManyRequests(
                f"you may have {most} requests waiting, and have {waiting}; try again in {math.ceil(retry_after_s)} s, "
                "or send fewer at once",
                retry_after_s=retry_after_s,
            )

    def charge(self, request: EngineRequest | EmbedRequest, event: RequestEvent) -> None:
        """Take the tokens that an event stands for out of the account's bucket."""
        self._buckets.charge(request.principal.account, request.principal.limits, n_tokens_of(request, event))


def n_tokens_of(request: EngineRequest | EmbedRequest, event: RequestEvent) -> int:
    """Number of tokens that were computed, as an event tells it."""
    match event:
        case Admitted() if isinstance(request, EngineRequest):
            return len(request.prompt) - event.cached_tokens
        case Output():
            return len(event.tokens)
        case Embedding():
            return event.n_tokens
        case _:
            return 0
