"""Turns at what is done with images: so many at once, the account that was served least first, then in order.

Bounded: more than `most` that wait are refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from ggufd.engine.queueing.fairness import Accounts
from ggufd.errors import QueueFull
from ggufd.keys.principal import Principal

MAX_WAITING = 64


@dataclass(slots=True, eq=False)
class _Turn:
    """Place in the queue: `may_begin` is set when it is its turn."""

    principal: Principal
    cost: float
    may_begin: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class ImageTurns:
    """Queue of images that are to be `done`, such as "encoded"; `at_once` are worked on beside each other.

    `seconds_each` says what one takes lately, 0 where that is not known.
    """

    def __init__(self, done: str, *, at_once: int = 1, most: int = MAX_WAITING) -> None:
        self._done = done
        self._at_once = at_once
        self._most = most
        self._waiting: list[_Turn] = []
        self._accounts = Accounts()
        self._n_taken = 0
        self.seconds_each = 0.0

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def turn(self, principal: Principal, cost: float) -> AsyncIterator[None]:
        """Wait for the turn of one that costs its account so much; the next one begins when this is left.

        Raises QueueFull.
        """
        if self._n_taken < self._at_once:
            self._n_taken += 1
            self._accounts.charge(principal, cost)
        else:
            await self._wait(_Turn(principal, cost))
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, place: _Turn) -> None:
        """Wait until another one passes its turn on."""
        if len(self._waiting) >= self._most:
            raise QueueFull(
                f"{len(self._waiting)} images wait to be {self._done}, as many as may. Try again later.",
                retry_after_s=max(1.0, self.seconds_each),
            )
        self._waiting.append(place)
        self._accounts.wait(place.principal.account)
        try:
            await place.may_begin
        except asyncio.CancelledError:
            if place.may_begin.done() and not place.may_begin.cancelled():
                self._pass_on()
            else:
                self._leave(place)
            raise

    def _pass_on(self) -> None:
        """Give the turn to the next one, or to nobody. Some that were cancelled may not have left yet."""
        waiting = [place for place in self._waiting if not place.may_begin.done()]
        if not waiting:
            self._n_taken -= 1
        else:
            account = self._accounts.counters.least([place.principal.account for place in waiting])
            place = next(one for one in waiting if one.principal.account == account)
            self._leave(place)
            # Now, not when it is awake: the next turn may be passed on before.
            self._accounts.charge(place.principal, place.cost)
            place.may_begin.set_result(None)

    def _leave(self, place: _Turn) -> None:
        self._waiting.remove(place)
        self._accounts.settle(place.principal.account)
