"""Collector of the live view: one look at the engine a second, while somebody looks or something is under way.

One task, which begins with the first viewer or request and ends when there is neither; all viewers share what it found.
While nobody looks it only keeps the history going. It never keeps an engine awake, nor wakes one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

from ggufd.api.http.record import RequestRecord
from ggufd.api.live.batches import OpenBatch, open_batches
from ggufd.api.live.history import LiveHistory
from ggufd.api.live.recent import Recent
from ggufd.api.live.shares import ServedLately
from ggufd.api.services.services import EngineService, Services
from ggufd.engine.messages.reports import LiveState
from ggufd.errors import GgufdError

INTERVAL_S = 1.0

_ANSWER_S = 0.5
"""An engine answers between two steps; a longer step is told as an old state."""

_EVENTS = {
    "READY": "the model is loaded",
    "SLEEPING": "the model was unloaded",
    "WAKING": "the model is loaded again for a request",
    "RESTARTING": "the engine ended unexpectedly and is started again",
    "FAILED": "the engine was given up",
    "DRAINING": "no new requests are taken",
}


class Collector:
    """Latest state of the engine that `services` tells, with the history and what happened lately."""

    def __init__(self, services: Callable[[], Services], interval_s: float | None = None) -> None:
        self._services = services
        self.interval_s = INTERVAL_S if interval_s is None else interval_s
        self.history = LiveHistory()
        self.recent = Recent()
        self.served = ServedLately()
        self.state: LiveState | None = None
        self.state_s = 0.0
        """When `state` was told, in seconds of `time.monotonic`."""
        self.batches: tuple[OpenBatch, ...] = ()
        self.tick = 0
        """Number of the latest look."""
        self._n_viewers = 0
        self._task: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[LiveState] | None = None
        self._ticked: asyncio.Future[None] | None = None
        self._begun: set[int] = set()
        self._n_refused = 0
        self._watched: EngineService | None = None
        self._was_paused = False
        self._is_stopped = False
        self._n_stopped = 0

    # --- what happens -----------------------------------------------------------------------------------------------

    def observe(self, record: RequestRecord) -> None:
        """A request has ended. Must be quick: see `api.http.record.Sink`."""
        if id(record) in self._begun:
            self._begun.discard(id(record))
        elif record.first_s is not None:
            self._note_first(record)
        self.recent.note_request(record)

    def serve(self, engine: EngineService) -> None:
        """The engine that is served from now on."""
        if self._watched is not None:
            self.recent.note_event("load", f"the model is changed to {self._services().config.model_id}")
        self._watched, self.state = engine, None
        self._is_stopped, self._n_stopped = False, 0
        self.served.restart()
        engine.watch(lambda state: self._note_state(engine, state.name))

    def _note_state(self, engine: EngineService, name: str) -> None:
        self._is_stopped = engine is self._watched and name == "STOPPED"
        if engine is self._watched and name in _EVENTS:
            is_resumed = name == "READY" and self._was_paused
            self._was_paused = name == "DRAINING"
            text = "requests are taken again" if is_resumed else _EVENTS[name]
            self.recent.note_event("resumed" if is_resumed else name.lower(), text)

    # --- the task ---------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Begin to look, unless that is going on."""
        if self._task is None or self._task.done():
            self.state = None
            self._task = asyncio.get_running_loop().create_task(self._run())

    @contextlib.contextmanager
    def viewer(self) -> Iterator[None]:
        """Context of somebody who looks."""
        self._n_viewers += 1
        self.wake()
        try:
            yield
        finally:
            self._n_viewers -= 1

    async def next_tick(self) -> int:
        """Wait for the next look, and return its number."""
        if self._ticked is None or self._ticked.done():
            self._ticked = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._ticked)
        return self.tick

    async def close(self) -> None:
        """End the task."""
        for task in (self._task, self._asking):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    @property
    def is_over(self) -> bool:
        """Whether the engine has stopped and no other took its place: the server ends."""
        return self._n_stopped > 1

    @property
    def _is_wanted(self) -> bool:
        engine = self._services().engine
        return self._n_viewers > 0 or engine.n_running + engine.n_waiting > 0

    async def _run(self) -> None:
        while True:
            # One look more after the last request: what it had is told then.
            was_wanted, now_s = self._is_wanted, time.monotonic()
            await self._look()
            await asyncio.sleep(max(0.05, now_s + self.interval_s - time.monotonic()))
            if not was_wanted and not self._is_wanted:
                return

    async def _look(self) -> None:
        before, before_s = self.state, self.state_s
        self.state = await self._ask(before)
        self.batches = await open_batches(self._services())
        now_s = time.monotonic()
        self._note_firsts()
        self._n_stopped += self._is_stopped
        if self.state is not None and self.state is not before:
            self.served.add(now_s, self.state.served)
        engine = self._services().engine
        refused, self._n_refused = self.recent.n_refused - self._n_refused, self.recent.n_refused
        self.history.add(
            now_s, self.state_s - before_s, before, self.state, (engine.n_waiting, engine.n_running, refused)
        )
        self.tick += 1
        if self._ticked is not None and not self._ticked.done():
            self._ticked.set_result(None)

    async def _ask(self, last: LiveState | None) -> LiveState | None:
        """The engine's state; the last one where it is busy with one step, None where there is no engine to ask."""
        engine = self._services().engine
        if engine.state.name not in ("READY", "DRAINING"):
            return None
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(engine.reports.live_state())
        done, _ = await asyncio.wait((self._asking,), timeout=_ANSWER_S)
        if not done:
            return last
        try:
            state = self._asking.result()
        except GgufdError:
            return None
        self.state_s = time.monotonic()
        return state

    # --- first tokens -----------------------------------------------------------------------------------------------

    def _note_firsts(self) -> None:
        """First tokens of requests that are still under way: a long answer is not waited for."""
        begun = set()
        for generation in self._services().activity:
            record = generation.caller.record
            if record.first_s is not None:
                begun.add(id(record))
                if id(record) not in self._begun:
                    self._note_first(record)
        self._begun = begun

    def _note_first(self, record: RequestRecord) -> None:
        assert record.first_s is not None
        self.history.note_first_token(record.started_s + record.first_s, record.first_s)
