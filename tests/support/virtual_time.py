"""Virtual time of an event loop: what sleeps costs nothing, and no other process makes anything take longer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from selectors import BaseSelector, SelectorKey
from typing import cast

import pytest

_ROUND_S = 20e-6
"""What one round of the loop takes. Without it the time of a server that never sleeps would stand still."""

_LONG_S, _GRACE_S = 0.05, 0.005
"""Before a longer jump, bytes that are under way have this time of the real clock to arrive."""


class VirtualClock:
    """Clock of a loop that jumps to the next timer as soon as no socket has news."""

    def __init__(self, loop: asyncio.AbstractEventLoop, selector: BaseSelector) -> None:
        self.now_s = loop.time()
        self._select = selector.select

    def time(self) -> float:
        return self.now_s

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """What the selector finds, which waits only where no timer would ever ring."""
        self.now_s += _ROUND_S
        events = self._select(0)
        if events or timeout == 0:
            return events
        if timeout is None or timeout > _LONG_S:
            events = self._select(None if timeout is None else _GRACE_S)
        if not events and timeout is not None:
            self.now_s += timeout
        return events


@contextmanager
def virtual_time() -> Iterator[None]:
    """The running loop and the clocks of `time` go by a virtual one. Everything awaited must be of this loop."""
    loop = asyncio.get_running_loop()
    selector = cast("BaseSelector", loop._selector)  # type: ignore[attr-defined]
    clock = VirtualClock(loop, selector)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "time", clock.time)
        patch.setattr(selector, "select", clock.select)
        for name in ("monotonic", "perf_counter"):
            patch.setattr(time, name, clock.time)
        yield
