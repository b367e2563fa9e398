"""Registry of running generations by caller, and usage of the last one: for routes that check or abort without an id.

KoboldCpp's `abort` and `check` name no request. Here they mean what the same key and the same address started.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

from ggufd.api.services.caller import Caller
from ggufd.engine.messages.events import Finish


class RunningGeneration(Protocol):
    """Running generation of a caller."""

    @property
    def caller(self) -> Caller: ...
    @property
    def text(self) -> str: ...
    @property
    def finishes(self) -> list[Finish]: ...
    def abort(self) -> None: ...


class Activity:
    """Registry of all running generations, oldest first, with totals. Times in seconds, of `clock`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[int, RunningGeneration] = {}
        self._watchers: list[Callable[[], None]] = []
        self._started_s = clock()
        self._idle_since_s = self._started_s
        self.n_finished = 0
        self.last: Finish | None = None

    def enter(self, work: RunningGeneration) -> None:
        """RunningGeneration begins. Lines of batches are not for their owner's other programs to abort."""
        if work.caller.principal.is_background:
            return
        self._open[id(work)] = work
        for tell in self._watchers:
            tell()

    def watch(self, tell: Callable[[], None]) -> None:
        """Call `tell` whenever a generation begins."""
        self._watchers.append(tell)

    def __iter__(self) -> Iterator[RunningGeneration]:
        """All running generations."""
        return iter(list(self._open.values()))

    def leave(self, work: RunningGeneration) -> None:
        """RunningGeneration has ended, in whatever way."""
        if work.caller.principal.is_background:
            return
        self._open.pop(id(work), None)
        self._idle_since_s = self._clock()
        if work.finishes:
            self.n_finished += len(work.finishes)
            self.last = work.finishes[0]

    def of(self, caller: Caller) -> list[RunningGeneration]:
        """The caller's running generations; without a `genkey` all of them, whatever they were called."""
        return [
            work
            for work in self._open.values()
            if (work.caller.principal.name, work.caller.address) == (caller.principal.name, caller.address)
            and caller.genkey in ("", work.caller.genkey)
        ]

    @property
    def uptime_s(self) -> float:
        return self._clock() - self._started_s

    @property
    def idle_s(self) -> float:
        """Seconds since the last generation ended; 0 while one runs."""
        return 0.0 if self._open else self._clock() - self._idle_since_s
