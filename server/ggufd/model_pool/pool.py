"""Model pool on the event loop: requests take turns, and models are swapped as the scheduler decides.

Whoever asks gets a `ModelTurn`: it is ready when the model is loaded, and while it is held the model stays. How a model
is loaded is handed in. Knows no HTTP, and no engine.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Self

from ggufd.engine.queueing.fairness import TokenCounters
from ggufd.errors import GgufdError, QueueFull, QueueTimeout, TooManyRequests, Unavailable
from ggufd.keys.places import DISPLACED, FULL, displaced_by
from ggufd.keys.principal import NOBODY, Principal
from ggufd.model_pool.catalogue import KnownModel, ModelCatalogue
from ggufd.model_pool.errors import ModelLoadFailed, ModelNotLoaded, without_folders
from ggufd.model_pool.load_times import LoadTimes
from ggufd.model_pool.swap_scheduler import Phase, SwapScheduler, Ticket, WaitForecast

logger = logging.getLogger("ggufd")

_FIRST_NUMBER = 1_000_000_001
"""Beyond the numbers that engines give to requests, beside which these are shown."""

LoadModel = Callable[[str], Awaitable[None]]
"""Loads a known model by its name in place of the loaded one. Raises GgufdError, and the old one is loaded then."""


@dataclass(frozen=True, slots=True)
class PoolRules:
    """Bounds of waiting for a model.

    `swap_after_s` is the least time between two swaps, `max_waiting` the number of requests that may wait, `max_wait_s`
    how long one may, `retry_after_s` when a model that could not be loaded is tried again.
    """

    swap_after_s: float = 30.0
    max_waiting: int = 64
    max_wait_s: float = 600.0
    retry_after_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Claim:
    """Who asks for a model, and what for: see `Ticket`. `timeout_s` is the request's own limit."""

    principal: Principal = NOBODY
    may_swap: bool = True
    is_light: bool = False
    timeout_s: float | None = None


@dataclass(eq=False)
class ModelTurn:
    """Turn of one request, a context: what it asked for stays loaded until it is left.

    `number` identifies it while it waits. `model` is None where the request means whichever model is loaded.
    """

    number: int
    model: str | None
    claim: Claim
    ticket: Ticket
    _pool: ModelPool = field(repr=False)
    _ready: asyncio.Future[None] = field(repr=False)
    began_s: float = 0.0
    ready_s: float | None = None

    @property
    def principal(self) -> Principal:
        """Who it is for."""
        return self.claim.principal

    @property
    def is_ready(self) -> bool:
        """Whether its model is loaded, and the request may run."""
        return self.ready_s is not None

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to wait for any more: it is ready, or was refused."""
        return self._ready.done()

    @property
    def future(self) -> asyncio.Future[None]:
        """Done as soon as the waiting has ended."""
        return self._ready

    @property
    def waited_s(self) -> float:
        """Seconds that it waited, up to now where it still does."""
        return (self.ready_s or self._pool.now_s) - self.began_s

    @property
    def forecast(self) -> WaitForecast:
        """Its place among the models that are waited for, and the expected seconds."""
        return self._pool.forecast(self)

    def refuse(self, error: GgufdError) -> None:
        """End its waiting with `error`; nothing happens to one that runs."""
        if not self._ready.done():
            self._ready.set_exception(error)
            # Whoever waits may be gone: then nobody looks at it.
            self._ready.exception()
            self._pool.drop(self)

    def run(self) -> None:
        """Let it run."""
        self.ready_s = self._pool.now_s
        if not self._ready.done():
            self._ready.set_result(None)

    async def wait(self, for_s: float | None = None) -> bool:
        """Wait until it is ready, that long at most; whether it is. Raises what refused it."""
        await asyncio.wait({self._ready}, timeout=for_s)
        if self._ready.done():
            self._ready.result()
        return self.is_ready

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.leave(self)


class ModelPool:
    """Pool of the models in `catalogue`, of which the one named `loaded` is loaded. Lives on the event loop.

    Those named `kept` stay loaded beside it: who asks for one runs at once, and has no part in swaps. `tokens` is what
    the engines charge with the tokens that they serve.
    """

    def __init__(
        self,
        catalogue: ModelCatalogue,
        loaded: str,
        load: LoadModel,
        rules: PoolRules | None = None,
        clock: Callable[[], float] = time.monotonic,
        kept: Collection[str] = (),
        tokens: TokenCounters | None = None,
    ) -> None:
        self.catalogue = catalogue
        self.kept = frozenset(kept)
        self.rules = rules or PoolRules()
        self.times = LoadTimes()
        self.failures: dict[str, str] = {}
        """Why models could not be loaded when that was tried last."""
        self.plans: dict[str, dict[str, Any]] = {}
        """What `ggufd plan` says of the models, as far as it was made."""
        self._load = load
        self._clock = clock
        self._scheduler = SwapScheduler(loaded, self.rules.swap_after_s, clock, tokens)
        self._turns: dict[Ticket, ModelTurn] = {}
        self._numbers = itertools.count(_FIRST_NUMBER)
        self._try_again_s: dict[str, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._swapping: asyncio.Task[None] | None = None
        self._refusal: GgufdError | None = None
        self.n_swaps = 0

    # --- what there is ------------------------------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        return self._clock()

    @property
    def loaded(self) -> str:
        """Name of the loaded model; during a swap that of the one before."""
        return self._scheduler.loaded

    @property
    def is_swapping(self) -> bool:
        return self._scheduler.phase is Phase.SWAPPING

    def standing(self, name: str) -> dict[str, float]:
        """What the engine of a model has to know of those who wait for it: see `SwapScheduler.standing`."""
        return self._scheduler.standing(name)

    def would_swap(self, name: str) -> bool:
        """Whether a request for the model of this name may begin a swap."""
        return name != self.loaded and name not in self.kept and not self.is_swapping

    @property
    def target(self) -> str | None:
        """Name of the model that is to be loaded next, or is being loaded."""
        return self._scheduler.target

    @property
    def waiting(self) -> list[ModelTurn]:
        """Turns that wait, in the order of their arrival."""
        return [self._turns[ticket] for ticket in self._scheduler.waiting]

    def find(self, number: int) -> ModelTurn | None:
        """The waiting turn with this number."""
        return next((turn for turn in self.waiting if turn.number == number), None)

    def forecast(self, turn: ModelTurn) -> WaitForecast:
        """Expected wait of a turn."""
        return self._scheduler.forecast(turn.ticket, self._load_s)

    def _load_s(self, name: str) -> float:
        # One that an admin names by its file is not known before it is loaded.
        return self.times.forecast_s(self.catalogue.find(name) or KnownModel(name, name))

    # --- turns --------------------------------------------------------------------------------------------------------

    def enter(self, asked: str | None, claim: Claim) -> ModelTurn:
        """The turn of a request that asks for a model by this name.

        Raises what refuses it at once: ModelNotLoaded, ModelLoadFailed, QueueFull, QueueTimeout, TooManyRequests.
        """
        if self._refusal is not None:
            raise self._refusal
        known = self.catalogue.find(asked)
        is_kept = known is not None and known.name in self.kept
        if known is not None and not is_kept:
            self._check_known(known, claim)
        principal = claim.principal
        ticket = Ticket(
            None if known is None else known.name,
            principal.account,
            principal.limits.weight,
            may_swap=claim.may_swap,
            is_light=claim.is_light,
            is_background=principal.is_background,
        )
        ready = asyncio.get_running_loop().create_future()
        turn = ModelTurn(next(self._numbers), ticket.model, claim, ticket, self, ready, self.now_s)
        if is_kept:
            turn.run()
            return turn
        self._turns[ticket] = turn
        self._scheduler.enter(ticket)
        self._look()
        try:
            self._check_waiting(turn)
        except GgufdError:
            self.leave(turn)
            raise
        return turn

    def leave(self, turn: ModelTurn) -> None:
        """The request has ended, or does not wait any more."""
        if self._turns.pop(turn.ticket, None) is not None:
            self._scheduler.leave(turn.ticket)
            self._look()

    def drop(self, turn: ModelTurn) -> None:
        """Forget a turn that was refused; what follows from that is seen to soon."""
        if self._turns.pop(turn.ticket, None) is not None:
            self._scheduler.leave(turn.ticket)
            asyncio.get_running_loop().call_soon(self._look)

    def _check_known(self, known: KnownModel, claim: Claim) -> None:
        """Raises what refuses a request for a model that is not loaded."""
        next_name = self._scheduler.target if self.is_swapping else self.loaded
        if known.name in (next_name, self._scheduler.target):
            return
        if not claim.may_swap:
            raise self._not_loaded(known.name)
        left_s = self._try_again_s.get(known.name, 0.0) - self.now_s
        if left_s > 0:
            why = self.failures[known.name]
            raise ModelLoadFailed(
                f"The model '{known.name}' could not be loaded: {why} It is not tried again for {math.ceil(left_s)} s.",
                param="model",
                retry_after_s=left_s,
            )

    def _not_loaded(self, name: str) -> ModelNotLoaded:
        return ModelNotLoaded(
            f"The model '{name}' is not loaded, and this key may not have it loaded. '{self.loaded}' is; whoever runs "
            f"the server can allow it with --swap-for or --swap-models.",
            param="model",
        )

    def _check_waiting(self, turn: ModelTurn) -> None:
        """Raises what refuses a turn that has to wait."""
        if turn.is_ready or turn.ticket.is_background:
            return
        wait_s = turn.forecast.wait_s
        people = [one for one in self.waiting if not one.ticket.is_background]
        displaced = None
        if len(people) > self.rules.max_waiting:
            displaced = displaced_by(turn.principal, (one for one in people if one is not turn))
            if displaced is None:
                raise _full(FULL, len(people) - 1, wait_s)
        most = turn.claim.principal.limits.max_waiting
        own = [one for one in people if one.claim.principal.account == turn.claim.principal.account]
        if most is not None and len(own) > most:
            raise TooManyRequests(
                f"you may have {most} requests waiting, and have {len(own) - 1}; try again in {math.ceil(wait_s)} s, "
                "or send fewer at once",
                retry_after_s=max(1.0, wait_s),
            )
        timeout_s = turn.claim.timeout_s
        if timeout_s is not None and wait_s > timeout_s:
            raise QueueTimeout(
                f"the request wants its answer within {timeout_s:g} s, but its model is due in about {wait_s:.1f} s; "
                "ask for more time, or try again later",
                param="timeout",
                retry_after_s=wait_s - timeout_s,
            )
        if displaced is not None:
            displaced.refuse(_full(DISPLACED, len(people) - 1, displaced.forecast.wait_s))

    def expire(self, turn: ModelTurn) -> None:
        """Refuse a turn that has waited as long as it may."""
        turn.refuse(
            QueueTimeout(
                f"the request waited {turn.waited_s:.0f} s for its model, and as long as it may; try again later",
                retry_after_s=max(1.0, turn.forecast.wait_s),
            )
        )

    # --- swaps --------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Do what the scheduler says."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        step = self._scheduler.step()
        for ticket in step.released:
            self._turns[ticket].run()
        loop = asyncio.get_running_loop()
        if step.swap_to is not None:
            self._swapping = loop.create_task(self._swap(step.swap_to))
        elif step.look_in_s is not None:
            self._timer = loop.call_later(step.look_in_s, self._look)

    async def _swap(self, name: str) -> None:
        began_s = self.now_s
        waits = [f"{turn.waited_s:.0f} s" for turn in self.waiting if turn.model == name]
        logger.info("swapping to %s, for requests that waited: %s", name, ", ".join(waits[:8]))
        try:
            await self._load(name)
        except GgufdError as error:
            self._failed(name, error)
        except Exception:
            self._failed(name, GgufdError("the server failed while it was loaded."))
            raise
        else:
            self._loaded(name, began_s)
        finally:
            self._look()

    def _loaded(self, name: str, began_s: float, user: str | None = None) -> None:
        self.n_swaps += 1
        self.times.note(self.catalogue[name], self.now_s - began_s)
        self.failures.pop(name, None)
        self._try_again_s.pop(name, None)
        self._scheduler.swapped(name, user)
        self._refuse_stranded()

    def _failed(self, name: str, error: GgufdError) -> None:
        """The old model is loaded again; whoever waited for the other is told why."""
        logger.error("%s could not be loaded for the requests that wait for it: %s", name, error.message)
        why = self.failures[name] = without_folders(error.message)
        self._try_again_s[name] = self.now_s + self.rules.retry_after_s
        for ticket in self._scheduler.kept():
            self._turns[ticket].refuse(
                ModelLoadFailed(
                    f"The model '{name}' could not be loaded: {why}",
                    param="model",
                    retry_after_s=self.rules.retry_after_s,
                )
            )
        self._refuse_stranded()

    def _refuse_stranded(self) -> None:
        for ticket in self._scheduler.stranded():
            assert ticket.model is not None
            self._turns[ticket].refuse(self._not_loaded(ticket.model))

    async def change(self, name: str, load: Callable[[], Awaitable[KnownModel]], user: str) -> None:
        """Swap because somebody says so, and not for a request; `load` says what is loaded then. What asks meanwhile
        waits. Raises what `load` raises, and Unavailable during another swap.
        """
        if self.is_swapping:
            raise Unavailable("Another model is being loaded. Try again when it is ready.", retry_after_s=10)
        began_s = self.now_s
        self._scheduler.begin_swap(name)
        try:
            known = await load()
        except BaseException as error:
            self._scheduler.kept()
            if isinstance(error, GgufdError):
                self.failures[name] = without_folders(error.message)
            raise
        else:
            self.catalogue.add(known)
            self._loaded(known.name, began_s, user)
        finally:
            self._look()

    def close(self, refusal: GgufdError) -> None:
        """Refuse what waits, and everything from now on, with `refusal`: the server ends."""
        self._refusal = refusal
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for turn in self.waiting:
            turn.refuse(refusal)

    async def stop(self) -> None:
        """End a swap that is under way."""
        if self._swapping is not None:
            self._swapping.cancel()
            await asyncio.gather(self._swapping, return_exceptions=True)


def _full(why: str, n_waiting: int, wait_s: float) -> QueueFull:
    """Refusal of a turn for which there is no place, and which would have waited so long."""
    return QueueFull(
        f"{why}: {n_waiting} requests are waiting for a model. Try again in {math.ceil(wait_s)} s, "
        "or start the server with a larger --max-queue",
        retry_after_s=max(1.0, wait_s),
    )
