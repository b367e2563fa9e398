"""Watchdog: tells an engine that hangs from one that is slow; when to ping it, and when to give it up.

Knows no process and no clock: whoever watches calls `look` about every `beat_s` seconds and `heard` for every message.
"""

from __future__ import annotations

import enum

_SLOWEST_DISK = 50_000_000
"""Bytes a second. A step may have to read every weight from the disk, where memory is short."""

_SLOWER = 5
"""An answer may take so many times as long as the slowest before it."""

_BEATS = 10
_LONGEST_BEAT_S = 0.5


class Verdict(enum.Enum):
    """Outcome of a look: what to do now."""

    WAIT = "wait"
    ASK = "ask"
    GIVE_UP = "give up"


class Watchdog:
    """Watchdog of one engine, which answers between two steps. `timeout_s` 0 never gives up.

    Its silence is counted in looks, none of which counts more than two beats: where this process itself stood still,
    or the whole machine slept, the engine is not to blame.
    """

    def __init__(self, timeout_s: float, model_bytes: int) -> None:
        self._timeout_s = timeout_s
        self._least_s = max(timeout_s, model_bytes / _SLOWEST_DISK)
        self._slowest_s = 0.0
        self._silence_s = 0.0
        self._is_asked = False
        self._was_heard = False
        self.beat_s = min(_LONGEST_BEAT_S, timeout_s / _BEATS) if timeout_s else _LONGEST_BEAT_S

    @property
    def limit_s(self) -> float:
        """Longest silence that may be a slow step."""
        return max(self._least_s, _SLOWER * self._slowest_s)

    def heard(self) -> None:
        """Note a message of the engine."""
        self._slowest_s = max(self._slowest_s, self._silence_s)
        self._silence_s = 0.0
        self._is_asked = False
        self._was_heard = True

    def look(self, elapsed_s: float, *, has_work: bool) -> Verdict:
        """Verdict `elapsed_s` after the last look. An engine that speaks is not pinged, nor one without work."""
        if self._is_asked:
            self._silence_s += min(elapsed_s, 2 * self.beat_s)
            overdue = self._timeout_s > 0 and self._silence_s > self.limit_s
            return Verdict.GIVE_UP if overdue else Verdict.WAIT
        was_heard, self._was_heard = self._was_heard, False
        if was_heard or not has_work:
            return Verdict.WAIT
        self._is_asked = True
        return Verdict.ASK
