"""Limits at the submission of a request: the queue's length, and of an account waiting requests and tokens per minute.

Rate limiting is a token bucket for each account, which holds a minute's worth and fills steadily. What a request takes
is known only when it was computed, so an account may start requests as long as its bucket is not empty, and waits
afterwards until the debt is paid. Policy alone: knows no engine and no HTTP.

In a cluster each server tells what its accounts use of their limits, and counts what is told of the others as its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping

from ggufd.engine.client.open_requests import OpenRequests, n_held, n_waiting
from ggufd.engine.client.stream import RequestStream
from ggufd.engine.messages.events import Admitted, Embedding, Output, RequestEvent
from ggufd.engine.messages.reports import LimitUse, UseElsewhere
from ggufd.engine.messages.requests import EmbedRequest, EngineRequest
from ggufd.errors import QueueFull, TooManyRequests
from ggufd.keys.places import FULL, displaced_by
from ggufd.keys.ring import Limits

_MINUTE_S = 60.0
_SWEEP_EVERY = 256
"""Number of buckets at which those that are full again are dropped."""
_MAX_USED = 256
"""So many accounts are reported, those that took something last."""


class TokenBuckets:
    """Token buckets of the accounts that have a limit and took something lately. Times in seconds, of `clock`.

    `used_s` is what each of the last accounts took here since the start, as the time in which a bucket fills by it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._full_at: dict[str, float] = {}
        self.used_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._full_at)

    def charge(self, account: str, limits: Limits, n_tokens: int) -> None:
        """Take tokens out, more than there are if need be. Does nothing where there is no limit."""
        if limits.tokens_per_minute is None or n_tokens == 0:
            return
        used_s = n_tokens * _MINUTE_S / limits.tokens_per_minute
        self.charge_time(account, used_s)
        self.used_s[account] = self.used_s.pop(account, 0.0) + used_s
        if len(self.used_s) > _MAX_USED:
            del self.used_s[next(iter(self.used_s))]

    def charge_time(self, account: str, used_s: float) -> None:
        """Take out what the bucket fills by in so many seconds."""
        now_s = self._clock()
        if len(self._full_at) >= _SWEEP_EVERY:
            self._full_at = {name: full_s for name, full_s in self._full_at.items() if full_s > now_s}
        self._full_at[account] = max(now_s, self._full_at.get(account, now_s)) + used_s

    def wait_s(self, account: str, limits: Limits) -> float:
        """Time until there are tokens in the bucket again; 0 when there are."""
        if limits.tokens_per_minute is None:
            return 0.0
        # A bucket that is full a minute from now is empty.
        return max(0.0, self._full_at.get(account, 0.0) - self._clock() - _MINUTE_S)


class SubmissionLimits:
    """Backpressure at the submission: what is refused at once, so that nothing piles up in the engine.

        QueueFull        as many requests wait as `max_queue` allows, and of no other account more than of this one
        TooManyRequests  the account has used its tokens per minute, or has as many waiting as it may

    Free slots count: the next step takes as many of those that wait.
    """

    def __init__(self, requests: OpenRequests, max_queue: int, buckets: TokenBuckets | None = None) -> None:
        self._requests = requests
        self._max_queue = max_queue
        # Empty ones are false.
        self._buckets = TokenBuckets() if buckets is None else buckets
        self._elsewhere: Mapping[str, UseElsewhere] = {}

    def is_full(self, n_slots: int) -> bool:
        """Whether as many requests wait as may: one more would be refused."""
        return self._requests.n_waiting >= self._max_queue + self._requests.n_free(n_slots)

    def check(self, request: EngineRequest | EmbedRequest, n_slots: int) -> RequestStream | None:
        """The waiting request whose place this one takes, where the queue of an engine of `n_slots` slots is full.

        Raises TooManyRequests or QueueFull where the request cannot be taken.
        """
        wait_s = self._buckets.wait_s(request.principal.account, request.principal.limits)
        if wait_s > 0:
            raise TooManyRequests(
                f"this key has used its {request.principal.limits.tokens_per_minute} tokens per minute; "
                f"try again in {math.ceil(wait_s)} s",
                retry_after_s=wait_s,
            )
        displaced = None
        if self.is_full(n_slots) and not request.principal.is_background:
            displaced = displaced_by(request.principal, self._requests.waiting)
            if displaced is None:
                raise self.full(n_slots)
        if request.principal.limits.max_waiting is not None:
            self._check_waiting(request, n_slots, request.principal.limits.max_waiting)
        return displaced

    def full(self, n_slots: int, why: str = FULL) -> QueueFull:
        """Refusal of a request for which there is no place."""
        n_waiting = self._requests.n_waiting
        retry_after_s = self._requests.wait_s(n_waiting + 1, n_slots)
        return QueueFull(
            f"{why}: {n_waiting} requests are waiting. Try again in {math.ceil(retry_after_s)} s, "
            "or start the server with a larger --max-queue",
            retry_after_s=retry_after_s,
        )

    def use(self, n_slots: int) -> list[LimitUse]:
        """What accounts use of their limits here: those with open requests, and those that took tokens lately."""
        limits = {one.account: one.limits for one in (stream.request.principal for stream in self._requests)}
        accounts = [name for name, own in limits.items() if own.max_running or own.max_waiting is not None]
        return [
            LimitUse(
                account,
                self._buckets.used_s.get(account, 0.0),
                self._beyond_slots(account, limits.get(account, Limits()), n_slots),
                limits[account].max_running if account in limits else None,
            )
            for account in dict.fromkeys((*self._buckets.used_s, *accounts))
        ]

    def _beyond_slots(self, account: str, limits: Limits, n_slots: int) -> int:
        """Waiting requests of an account that get no slot now."""
        own = self._own(account)
        return max(0, n_waiting(own) - self._n_free(account, limits, own, n_slots))

    def count_elsewhere(self, uses: Iterable[UseElsewhere]) -> None:
        """Count what accounts use at the other servers of a cluster; whoever is not named has nothing there."""
        self._elsewhere = {one.account: one for one in uses}
        for one in self._elsewhere.values():
            if one.used_s:
                self._buckets.charge_time(one.account, one.used_s)

    def _own(self, account: str) -> list[RequestStream]:
        return [stream for stream in self._requests if stream.request.principal.account == account]

    def _n_free(self, account: str, limits: Limits, own: Iterable[RequestStream], n_slots: int) -> int:
        """Free slots that an account may take."""
        n_free = self._requests.n_free(n_slots)
        if limits.max_running is None:
            return n_free
        elsewhere = self._elsewhere.get(account)
        n_others = 0 if elsewhere is None else elsewhere.running
        return min(n_free, max(0, limits.max_running - n_others - n_held(own)))

    def _check_waiting(self, request: EngineRequest | EmbedRequest, n_slots: int, most: int) -> None:
        account, limits = request.principal.account, request.principal.limits
        own, elsewhere = self._own(account), self._elsewhere.get(account)
        waiting = n_waiting(own) + (0 if elsewhere is None else elsewhere.waiting)
        if waiting >= most + self._n_free(account, limits, own, n_slots):
            n_own = n_slots if limits.max_running is None else min(limits.max_running, n_slots)
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
