"""What is being generated for whom, and what the last answer cost: for routes that ask or abort without an id.

KoboldCpp's `abort` and `check` name no request. Here they mean what the same key and the same address started.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from starlette.requests import Request

from ggufd.api.http.auth import key_of
from ggufd.api.http.record import RequestRecord, record_of
from ggufd.engine.messages.events import Finish
from ggufd.keys.ring import Limits


@dataclass(frozen=True, slots=True)
class Owner:
    """Who asks: the name of a key ("" without keys), the address, and a name of the client's own choice.

    `limits` are what the queue grants the key; `record` is of the request, which is told there what became of it.
    """

    key: str
    address: str
    genkey: str = ""
    limits: Limits = field(default_factory=Limits)
    is_admin: bool = True
    record: RequestRecord = field(default_factory=RequestRecord, compare=False)
    digest: str = field(default="", repr=False)
    """Of the key itself, for what outlives the process: another key may have the name after a restart."""

    @property
    def asker(self) -> str:
        """The person, as well as one can be told apart."""
        return self.key or self.address


def owner_of(request: Request, genkey: str = "") -> Owner:
    """Who sent this request."""
    key = key_of(request)
    address = request.client.host if request.client else ""
    return Owner(key.name, address, genkey, key.limits, key.is_admin, record_of(request), key.digest.hex())


class Work(Protocol):
    """Something under way that belongs to somebody."""

    @property
    def owner(self) -> Owner: ...
    @property
    def text(self) -> str: ...
    @property
    def finishes(self) -> list[Finish]: ...
    def abort(self) -> None: ...


class Activity:
    """All work under way, oldest first, and the figures of what was done. Times in seconds, of `clock`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[int, Work] = {}
        self._started_s = clock()
        self._idle_since_s = self._started_s
        self.n_finished = 0
        self.last: Finish | None = None

    def enter(self, work: Work) -> None:
        """Work begins."""
        self._open[id(work)] = work

    def leave(self, work: Work) -> None:
        """Work has ended, in whatever way."""
        self._open.pop(id(work), None)
        self._idle_since_s = self._clock()
        if work.finishes:
            self.n_finished += len(work.finishes)
            self.last = work.finishes[0]

    def of(self, owner: Owner) -> list[Work]:
        """What this owner has under way; without a `genkey` all of it, whatever it was called."""
        return [
            work
            for work in self._open.values()
            if (work.owner.key, work.owner.address) == (owner.key, owner.address)
            and owner.genkey in ("", work.owner.genkey)
        ]

    @property
    def uptime_s(self) -> float:
        return self._clock() - self._started_s

    @property
    def idle_s(self) -> float:
        """Since when nothing is under way."""
        return 0.0 if self._open else self._clock() - self._idle_since_s
