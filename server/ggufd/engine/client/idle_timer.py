"""Idle timer: one call after a time in which nobody stopped it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class IdleTimer:
    """Timer that calls `on_idle` some seconds after `start`, unless it is stopped before."""

    def __init__(self, on_idle: Callable[[], None]) -> None:
        self._on_idle = on_idle
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_running(self) -> bool:
        return self._timer is not None

    def start(self, after_s: float) -> None:
        """Start, unless it runs: what ends meanwhile does not make it longer."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(after_s, self._expire)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        self._on_idle()
