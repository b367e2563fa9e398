"""Swap scheduler: which requests run on the loaded model, and when another model takes its place.

One model is loaded at a time, and a swap costs seconds in which nobody is served. The policy bounds both how often that
happens and how long anybody waits for it:

    serving    requests for the loaded model run at once; those for others wait
    draining   a swap is due: new requests for the loaded model wait too, those that run go on to their end
    swapping   nothing runs

A swap to a model is due as soon as the loaded one has stayed for `swap_after_s`, and either nobody uses it, or a
request for the other has waited for `swap_after_s`. So there is at most one swap in that time, however many want
different models. Whoever alone has used the loaded model since it came, and asks for another while nothing runs or
waits, has that one at once: it disturbs nobody.

Of several models that are due, the one goes first for which the least served account waits (`TokenCounters`, here in
seconds). An account is served while its requests run, in equal parts with the others that run, and it is charged for
the swaps that it asked for. Background work gets a swap only where nothing else was asked for during `swap_after_s`.

Synchronous; time is that of a clock that is handed in. Knows no requests, no engine and no event loop.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ggufd.engine.queueing.fairness import TokenCounters

_EARLIEST_LOOK_S = 0.001


@dataclass(slots=True, eq=False)
class Ticket:
    """Request that wants the loaded model (`model` is None), or a model by its name.

    Without `may_swap` it runs when its model is loaded, and causes nothing. `is_light` is for what needs the model's
    vocabulary only: it is not held back while the model drains. `came_at_rest` says that nothing ran or waited when it
    came.
    """

    model: str | None
    account: str = ""
    weight: float = 1.0
    may_swap: bool = True
    is_light: bool = False
    is_background: bool = False
    arrived_s: float = 0.0
    came_at_rest: bool = False


class Phase(enum.Enum):
    """What the loaded model is doing: see the module."""

    SERVING = "serving"
    DRAINING = "draining"
    SWAPPING = "swapping"


@dataclass(frozen=True, slots=True)
class SwapStep:
    """What is to be done now: `released` may run, `swap_to` is to be loaded. `look_in_s` is when to ask again at last;
    None is when something happens."""

    released: tuple[Ticket, ...] = ()
    swap_to: str | None = None
    look_in_s: float | None = None


class WaitForecast(NamedTuple):
    """Expected wait for a model: its place among the models that are waited for (1 is the next), and seconds."""

    position: int
    wait_s: float


@dataclass(slots=True)
class _Residence:
    """Stay of the loaded model: since when, who used it, and when the last foreground request ended.

    `is_begun` is False until those who waited for it were released.
    """

    since_s: float
    users: set[str] = field(default_factory=set)
    used_s: float = 0.0
    is_begun: bool = False


class SwapScheduler:
    """Scheduler over the one model that is `loaded`. `enter` and `leave` tickets, then ask what is to be done: `step`.

    A swap that `step` asked for ends with `swapped` or `kept`. Times in seconds, of `clock`. `tokens` is charged by
    the engines, with the tokens that they served.
    """

    def __init__(
        self,
        loaded: str,
        swap_after_s: float,
        clock: Callable[[], float] = time.monotonic,
        tokens: TokenCounters | None = None,
    ) -> None:
        self.loaded = loaded
        self.target: str | None = None
        """Model that is to be loaded next, or is being loaded."""
        self.phase = Phase.SERVING
        self.counters = TokenCounters()
        """Seconds that the accounts were served."""
        self._tokens = TokenCounters() if tokens is None else tokens
        self._swap_after_s = swap_after_s
        self._clock = clock
        self._waiting: list[Ticket] = []
        self._running: list[Ticket] = []
        self._charged_s = self._now_s = clock()
        self._stay = _Residence(clock(), used_s=clock())
        self._asked: list[Ticket] = []
        self._swap_began_s = 0.0

    # --- tickets ------------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> tuple[Ticket, ...]:
        """Tickets that wait, in the order of their arrival."""
        return tuple(self._waiting)

    @property
    def running(self) -> tuple[Ticket, ...]:
        """Tickets that run."""
        return tuple(self._running)

    def enter(self, ticket: Ticket) -> None:
        """Let a ticket wait from now on; the next `step` may release it."""
        ticket.arrived_s = self._clock()
        everybody = (*self._waiting, *self._running)
        ticket.came_at_rest = self.phase is Phase.SERVING and all(one.is_background for one in everybody)
        if not ticket.is_background:
            others = {one.account for one in everybody if not one.is_background}
            if ticket.account not in others:
                self.counters.lift(ticket.account, others)
                self._tokens.lift(ticket.account, others)
        self._waiting.append(ticket)

    def leave(self, ticket: Ticket) -> None:
        """The request has ended, or its client left."""
        self._charge()
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        elif ticket in self._running:
            self._running.remove(ticket)
            if not ticket.is_background:
                self._stay.used_s = self._clock()
        if not self._waiting and not self._running:
            for counters in (self.counters, self._tokens):
                counters.settle(ticket.account)
                counters.forget(())

    # --- decisions ----------------------------------------------------------------------------------------------------

    def step(self) -> SwapStep:
        """What is to be done now. Tickets that it releases run until they `leave`."""
        self._charge()
        # One moment for all that is decided: else something could become due between what asks for it and what asks
        # when to look again, and nobody would.
        self._now_s = self._charged_s
        if self.phase is Phase.SWAPPING:
            return SwapStep()
        # Whoever waited for a model has it, also where the next one is due already.
        released = () if self._stay.is_begun else self._release(lambda one: not one.is_background)
        self._stay.is_begun = True
        self.target = self._due()
        self.phase = Phase.SERVING if self.target is None else Phase.DRAINING
        is_serving = self.phase is Phase.SERVING
        released += self._release(lambda one: is_serving or one.is_light)
        if self.target is not None and not any(not one.is_background for one in self._running):
            self.begin_swap(self.target)
            return SwapStep(released, self.target)
        return SwapStep(released, look_in_s=self._next_look_s())

    def begin_swap(self, target: str) -> None:
        """Begin a swap, also one that nobody waited for."""
        self.phase, self.target, self._swap_began_s = Phase.SWAPPING, target, self._clock()
        self._asked = [one for one in self._waiting if one.model == target and not one.is_background]

    def swapped(self, loaded: str, user: str | None = None) -> None:
        """The swap has ended: `loaded` is loaded now. `user` is an account that asked for it without a ticket."""
        self._end_swap()
        self.loaded = loaded
        self._stay = _Residence(self._clock(), {user} if user is not None else set(), self._clock())

    def kept(self) -> list[Ticket]:
        """The swap has failed: the old model is loaded again. Returns the tickets that waited for the other."""
        target = self.target
        self._end_swap()
        self._stay = _Residence(self._clock(), self._stay.users, self._clock())
        return [one for one in self._waiting if one.model == target]

    def stranded(self) -> list[Ticket]:
        """Tickets that wait for a model that is not loaded, without a right to have it loaded."""
        return [one for one in self._waiting if not self._fits(one) and not one.may_swap]

    def standing(self, model: str) -> dict[str, float]:
        """Tokens that the accounts which wait for a model were served more than the least served of them."""
        waiting = [one for one in self._waiting if one.model in (None, model) and not one.is_background]
        served = {one.account: self._tokens[one.account] for one in waiting}
        least = min(served.values(), default=0.0)
        return {account: tokens - least for account, tokens in served.items()}

    def forecast(self, ticket: Ticket, load_s: Callable[[str], float]) -> WaitForecast:
        """Expected wait of a ticket. `load_s` says how long a model takes to load; what runs is not foreseen."""
        now_s = self._clock()
        wait_s, loaded, stays_s = 0.0, self.loaded, now_s - self._stay.since_s
        if self.phase is Phase.SWAPPING and self.target is not None:
            wait_s = max(0.0, load_s(self.target) - (now_s - self._swap_began_s))
            loaded, stays_s = self.target, 0.0
        if ticket.model in (None, loaded):
            return WaitForecast(1, wait_s)
        for position, model in enumerate(self._order(loaded), 1):
            wait_s += max(0.0, self._swap_after_s - stays_s) if self._is_contested(loaded, model) else 0.0
            wait_s += load_s(model)
            if model == ticket.model:
                return WaitForecast(position, wait_s)
            loaded, stays_s = model, 0.0
        return WaitForecast(1, wait_s + load_s(ticket.model or self.loaded))

    def _fits(self, ticket: Ticket) -> bool:
        return ticket.model in (None, self.loaded)

    def _release(self, may_run: Callable[[Ticket], bool]) -> tuple[Ticket, ...]:
        """Let those run that wait for the loaded model and may."""
        released = tuple(one for one in self._waiting if self._fits(one) and may_run(one))
        self._waiting = [one for one in self._waiting if one not in released]
        self._running += released
        self._stay.users.update(one.account for one in released if not one.is_background)
        return released

    def _due(self) -> str | None:
        """The model that is to be loaded in place of the loaded one."""
        rivals = [one for one in self._waiting if not self._fits(one) and one.may_swap]
        if self.phase is Phase.DRAINING and any(one.model == self.target for one in rivals):
            return self.target
        people = [one for one in rivals if not one.is_background]
        due = [one for one in people if self._is_due([other for other in people if other.model == one.model])]
        if due:
            least = self.counters.least(one.account for one in due)
            return next(one.model for one in due if one.account == least)
        if not people and rivals and self._is_unused:
            return rivals[0].model
        return None

    def _is_due(self, tickets: list[Ticket]) -> bool:
        """Whether these, which wait for one model, may have it loaded."""
        has_stayed = self._left_s(self._stay.since_s) <= 0
        if self._is_idle:
            return has_stayed or self._disturbs_nobody(tickets)
        return has_stayed and self._left_s(tickets[0].arrived_s) <= 0

    def _disturbs_nobody(self, tickets: Sequence[Ticket]) -> bool:
        """Whether those who wait are alone with the loaded model, and do not want both at a time."""
        return any(one.came_at_rest for one in tickets) and self._stay.users <= {one.account for one in tickets}

    def _left_s(self, moment_s: float) -> float:
        """Seconds until `swap_after_s` has passed since that moment, as of the last step."""
        return moment_s + self._swap_after_s - self._now_s

    @property
    def _is_idle(self) -> bool:
        """Whether nobody uses the loaded model, or waits for it."""
        held = [one for one in self._waiting if self._fits(one)]
        return all(one.is_background for one in (*self._running, *held))

    @property
    def _is_unused(self) -> bool:
        """Whether nothing at all runs, and no person has asked for anything lately."""
        held = [one for one in self._waiting if self._fits(one)]
        return not self._running and not held and self._left_s(self._stay.used_s) <= 0

    def _next_look_s(self) -> float | None:
        """Seconds until time alone makes a swap due."""
        rivals = [one for one in self._waiting if not self._fits(one) and one.may_swap]
        if not rivals or self.phase is Phase.DRAINING:
            return None
        moments = [self._stay.since_s, self._stay.used_s, *(one.arrived_s for one in rivals)]
        later = [left_s for one in moments if (left_s := self._left_s(one)) > 0]
        return max(_EARLIEST_LOOK_S, min(later)) if later else None

    def _order(self, loaded: str) -> list[str]:
        """Models that are waited for, in the order in which they are expected."""
        asked = sorted((one for one in self._waiting if one.may_swap), key=lambda one: one.is_background)
        names = [one.model for one in asked if one.model not in (None, loaded)]
        first = [self.target] if self.target not in (None, loaded) else []
        return [name for name in dict.fromkeys((*first, *names)) if name is not None]

    def _is_contested(self, loaded: str, other: str) -> bool:
        """Whether `loaded` stays for its time before `other` comes."""
        if self.phase is Phase.DRAINING and other == self.target:
            return False
        asking = [one for one in self._waiting if one.model == other]
        return loaded != self.loaded or not self._is_idle or not self._disturbs_nobody(asking)

    # --- what it costs ------------------------------------------------------------------------------------------------

    def _charge(self) -> None:
        """Charge the time since the last call to those who ran."""
        now_s = self._clock()
        passed_s, self._charged_s = now_s - self._charged_s, now_s
        people = [one for one in self._running if not one.is_background]
        self._share(people, passed_s)

    def _share(self, tickets: Iterable[Ticket], cost_s: float) -> None:
        tickets = list(tickets)
        for one in tickets:
            self.counters.charge(one.account, cost_s / len(tickets), one.weight)

    def _end_swap(self) -> None:
        self._share(self._asked, self._clock() - self._swap_began_s)
        self._charged_s = self._clock()
        self._asked = []
        self.phase, self.target = Phase.SERVING, None
