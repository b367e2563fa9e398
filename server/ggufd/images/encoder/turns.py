"""Turns of encodings: one at a time, the account that was served least first, then in the order they came.

What is charged is rows. Bounded: more than `most` that wait are refused.
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
    n_rows: int
    may_begin: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class EncodingTurns:
    """Queue of encodings; `seconds_each` says what one takes lately, 0 where that is not known."""

    def __init__(self, most: int = MAX_WAITING) -> None:
        self._most = most
        self._waiting: list[_Turn] = []
        self._accounts = Accounts()
        self._is_taken = False
        self.seconds_each = 0.0

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def turn(self, principal: Principal, n_rows: int) -> AsyncIterator[None]:
        """Wait for the turn of an encoding to so many rows; the next one begins when this is left. Raises QueueFull."""
        if self._is_taken:
            await self._wait(principal, n_rows)
        self._is_taken = True
        self._accounts.charge(principal, n_rows)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, principal: Principal, n_rows: int) -> None:
        if len(self._waiting) >= self._most:
            raise QueueFull(
                f"{len(self._waiting)} images wait to be encoded, as many as may. Try again later.",
                retry_after_s=max(1.0, self.seconds_each),
            )
        place = _Turn(principal, n_rows)
        self._waiting.append(place)
        self._accounts.wait(principal.account)
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
        self._is_taken = bool(waiting)
        if waiting:
            account = self._accounts.counters.least([place.principal.account for place in waiting])
            place = next(one for one in waiting if one.principal.account == account)
            self._leave(place)
            place.may_begin.set_result(None)

    def _leave(self, place: _Turn) -> None:
        self._waiting.remove(place)
        self._accounts.settle(place.principal.account)
