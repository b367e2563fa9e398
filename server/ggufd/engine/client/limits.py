"""What an account may take of the server: how many requests wait for it, and how many tokens it gets a minute.

A token bucket for each account holds a minute's worth and fills steadily. What a request takes is known only when it
was computed, so an account may start requests as long as its bucket is not empty, and waits afterwards until what it
took too much is made up for. Policy alone: knows no engine and no HTTP.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from ggufd.errors import TooManyRequests
from ggufd.keys.ring import Limits

_MINUTE_S = 60.0
_SWEEP_EVERY = 256
"""So many buckets are kept before those that are full again are dropped."""


class TokenBuckets:
    """One bucket for each account that has a limit and took something lately. Times in seconds, of `clock`."""

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
        """Until there are tokens in the bucket again; 0 when there are."""
        if limits.tokens_per_minute is None:
            return 0.0
        # A bucket that is full a minute from now is empty.
        return max(0.0, self._full_at.get(account, 0.0) - self._clock() - _MINUTE_S)


def check_rate(buckets: TokenBuckets, account: str, limits: Limits) -> None:
    """Raises TooManyRequests while an account has taken more than its tokens a minute."""
    wait_s = buckets.wait_s(account, limits)
    if wait_s > 0:
        raise TooManyRequests(
            f"you may use {limits.tokens_per_minute} tokens a minute and have used them; try again in "
            f"{math.ceil(wait_s)} s",
            retry_after_s=wait_s,
        )


def check_waiting(limits: Limits, n_waiting: int, n_free: int, retry_after_s: float) -> None:
    """Raises TooManyRequests when an account has as many requests waiting as may wait.

    `n_free` more may wait for a moment: the next step takes them into free slots.
    """
    if limits.max_waiting is not None and n_waiting >= limits.max_waiting + n_free:
        raise TooManyRequests(
            f"you may have {limits.max_waiting} requests waiting, and have {n_waiting}; try again in "
            f"{math.ceil(retry_after_s)} s, or send fewer at once",
            retry_after_s=retry_after_s,
        )
