"""Backlog: requests that wait for a slot or for their prefill, and whether they have waited for a while.

A burst is over in a few seconds, in which the streams are better left their short gaps. What lasts longer is a server
with more work than it can do: then throughput counts.
"""

from __future__ import annotations

FEW = 0.2
"""Requests that wait over those with a slot; a batch is well used with fewer."""

_LASTING_S = 6.0
"""A backlog of so many seconds is no burst."""

_DECAY = 4.0
"""How many seconds of a backlog are forgotten in one in which nobody waits."""


class Backlog:
    """Seconds in which more than a few requests waited, less several times those since then in which nobody did.

    So a full server may be nearly through with its prompts for a moment, and one with a burst now and then is not full.
    Times in seconds, of any clock.
    """

    def __init__(self) -> None:
        self._lasted_s = 0.0
        self._seen_s = 0.0
        self._rate = 0.0

    def lasting(self, waiting: float, now_s: float) -> float:
        """`waiting`, as in `FEW`, where it has been more for a while; otherwise 0. To be called in each step."""
        lasted_s = self._lasted_s + self._rate * (now_s - self._seen_s)
        self._lasted_s = min(2 * _LASTING_S, max(0.0, lasted_s))
        self._seen_s = now_s
        self._rate = 1.0 if waiting > FEW else 0.0 if waiting else -_DECAY
        return waiting if waiting > FEW and self._lasted_s >= _LASTING_S else 0.0
