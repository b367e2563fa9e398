"""Time limit of one call: in the processor's time, so that a busy machine makes nobody late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_MOST_WALL_TIME = 4
"""Factor on the limit by which a call may last on the clock where others have the processor."""

_CPU_TICK_S = 0.01
"""The processor's time is counted in these."""


class CallDeadline:
    """Deadline of the call that was begun last: `on_overrun` is called when it has had its time.

    `cpu_s()` is the processor's time of the process that works on it.
    """

    def __init__(self, on_overrun: Callable[[], None], cpu_s: Callable[[], float]) -> None:
        self._on_overrun = on_overrun
        self._cpu_s = cpu_s
        self._limit_s = self._begun_s = self._begun_cpu_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, limit_s: float) -> None:
        """Start the time limit of a call."""
        self._limit_s = limit_s
        self._begun_s, self._begun_cpu_s = asyncio.get_running_loop().time(), self._cpu_s()
        self._look_in(limit_s)

    def stop(self) -> None:
        """Stop: no call is worked on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_in(self, after_s: float) -> None:
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(after_s, self._look)

    def _look(self) -> None:
        left_s = self._left_s()
        if left_s > 0:
            self._look_in(max(left_s, _CPU_TICK_S))
        else:
            self._timer = None
            self._on_overrun()

    def _left_s(self) -> float:
        """Time left to the call."""
        had_s = asyncio.get_running_loop().time() - self._begun_s
        return min(self._limit_s - (self._cpu_s() - self._begun_cpu_s), _MOST_WALL_TIME * self._limit_s - had_s)
