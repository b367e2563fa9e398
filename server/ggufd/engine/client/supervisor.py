"""Supervision of the engine's process: load, retry with less GPU memory, sleep and wake, restart, watchdog, stop.

The process itself is started, restarted and ended by `processes.supervisor`; here is what its exits and its silence
mean for the engine (`state` has the drawing). Knows no request: who uses the engine is told what becomes of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from ggufd.engine import process
from ggufd.engine.client.idle_timer import IdleTimer
from ggufd.engine.client.retreat import Retreat
from ggufd.engine.client.state import ASLEEP, IS_LOADING, Condition, EngineState
from ggufd.engine.client.watchdog import Verdict, Watchdog
from ggufd.engine.kv_store.model_file import FirstLoaded
from ggufd.engine.messages.config import EngineConfig
from ggufd.engine.messages.events import Admitted, Failed, Output, RequestEvent
from ggufd.engine.messages.reports import (
    ChatsSaved,
    Event,
    LiveState,
    LoadFailed,
    LoadProgress,
    LogLine,
    Notice,
    Placing,
    Pong,
    QueueState,
    Ready,
    SlotDone,
    Stats,
    Steps,
)
from ggufd.engine.messages.requests import Command, Ping, Shutdown
from ggufd.errors import EngineDown, ModelError, Unavailable
from ggufd.processes.child import ChildSpawner
from ggufd.processes.prestarted import PrestartedProcess
from ggufd.processes.supervisor import ChildSupervisor, Link, ProcessExit, RestartPolicy, Spawn

logger = logging.getLogger(__name__)

RESTARTS = RestartPolicy(first_s=0.5, most=5, healthy_s=60.0)

_WAKE_AGAIN_S = 30.0
_KILLED = -9


CallerEvent = RequestEvent | Stats | Steps | QueueState | LiveState | SlotDone | ChatsSaved
"""Events that somebody waits for; the others tell how the engine itself is."""


class EngineUser(Protocol):
    """User of the engine, as its supervisor sees it."""

    @property
    def is_answer_due(self) -> bool:
        """Whether the engine has something to do or to answer: its silence may be a hang."""

    @property
    def keeps_awake(self) -> bool:
        """Whether an idle engine must not be unloaded."""

    def receive(self, event: CallerEvent) -> None:
        """The engine said something of a request, or answered a question."""

    def engine_ready(self, send: Callable[[Command], None]) -> None:
        """The model is loaded: what waited for it may be sent."""

    def engine_ended(self, error: EngineDown) -> None:
        """The process ended as it should: questions that were sent get no answer."""

    def engine_lost(self, error: EngineDown) -> None:
        """The process is lost, or could not be started: nobody who waits gets anything but `error`."""


class EngineSupervisor:
    """Supervisor of the engine's process. `start` it inside a running event loop, then `wait_ready`; at the end `stop`.

    `on_progress` gets the share of the model that is loaded, 0 to 1. `prestarted` is the first process.
    """

    def __init__(
        self,
        config: EngineConfig,
        user: EngineUser,
        on_progress: Callable[[float], None] | None = None,
        spawn: Spawn[Link] | None = None,
        prestarted: PrestartedProcess | None = None,
    ) -> None:
        self.config = config
        self.condition = Condition(config)
        self.ready: Ready | None = None
        self._user = user
        self._on_progress = on_progress or (lambda share: None)
        spawn = spawn or ChildSpawner(process.NAME, process.main, lambda: (self.config,), prestarted)
        self._process = ChildSupervisor(spawn, RESTARTS, self._receive, self._exited)
        self._loaded: asyncio.Future[Ready] | None = None
        self._retreat = Retreat()
        self._watchdog = Watchdog(0, 0)
        self._watching: asyncio.Task[None] | None = None
        self._idle_timer = IdleTimer(self._fall_asleep)
        self._file: FirstLoaded | None = None
        self._noting: asyncio.Task[None] | None = None

    # --- used by who talks to the engine ------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process; returns at once."""
        self._loaded = asyncio.get_running_loop().create_future()
        if self._file is not None:
            self._process.relaunch(self._is_same_model)
            return
        self._file = FirstLoaded(self.config.model.path)
        self._process.launch()

    def expect_model_of(self, other: EngineSupervisor) -> None:
        """Load the very model that `other` loaded first, or fail. Before `start`."""
        self._file, self._noting = other._file, other._noting

    async def wait_ready(self) -> Ready:
        """What was loaded. Raises ModelError when the engine cannot serve this model."""
        assert self._loaded is not None, "start() comes first"
        return await asyncio.shield(self._loaded)

    def send(self, command: Command) -> None:
        """Send a command to the process; nothing where there is none."""
        self._process.send(command)

    def use(self) -> None:
        """Keep the engine awake, and wake one that sleeps."""
        self._idle_timer.stop()
        if self.condition.state is EngineState.SLEEPING:
            logger.info("loading the model again for a request")
            self._enter(EngineState.WAKING)
            self._choose_anew()
            self._process.relaunch(self._is_same_model)

    def rest(self) -> None:
        """Start the idle timer, unless it runs, where nobody keeps the engine awake."""
        idle_s = self.config.sleep_idle_s
        if idle_s is not None and self.condition.state is EngineState.READY and not self._user.keeps_awake:
            self._idle_timer.start(idle_s)

    def sleep(self) -> None:
        """Unload the model now, until the next request. Raises Unavailable while somebody uses the engine."""
        if self.condition.state in ASLEEP:
            return
        self.condition.require({EngineState.READY})
        if self._user.keeps_awake:
            raise Unavailable("requests are under way; the model can be unloaded when they have ended")
        self._unload("as an admin asked for")

    async def stop(self) -> None:
        """End the process, and wait until its memory is given back."""
        self._enter(EngineState.STOPPED)
        if self._watching is not None:
            self._watching.cancel()
        self._process.end(Shutdown())
        await self._process.wait_gone()

    # --- what the process says ----------------------------------------------------------------------------------

    def _receive(self, events: list[Event]) -> None:
        self._watchdog.heard()
        for event in events:
            match event:
                case Output() | Admitted() | Failed():
                    self._user.receive(event)
                case LoadProgress(fraction):
                    self._on_progress(fraction)
                case LogLine(level, message, name):
                    logging.getLogger(name).log(level, "%s", message)
                case Notice(message):
                    logger.info("%s", message)
                case Ready():
                    self._became_ready(event)
                case Placing(vram_bytes):
                    self._retreat.note(vram_bytes)
                case LoadFailed(message, is_too_large):
                    self._load_failed(message, is_too_large=is_too_large)
                case Pong():
                    pass
                case _:
                    self._user.receive(event)
        self.rest()

    def _became_ready(self, ready: Ready) -> None:
        if self.condition.state not in IS_LOADING:
            return
        self.condition.load_s = max(1.0, self._process.mark_ready())
        self.ready = ready
        # Whoever waited then has no claim on an engine that is started again later.
        self.config = replace(self.config, carried=())
        self._retreat.end()
        self._enter(EngineState.READY, trouble="")
        loop = asyncio.get_running_loop()
        self._watchdog = Watchdog(self.config.step_timeout_s, ready.model.size_bytes)
        self._watching = loop.create_task(self._watch(self._watchdog))
        self._user.engine_ready(self.send)
        if self._noting is None and self._file is not None:
            self._noting = loop.create_task(asyncio.to_thread(self._file.note))
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_result(ready)

    def _load_failed(self, message: str, *, is_too_large: bool) -> None:
        """Retry with less of the GPU, or give up; one that was loaded before is tried again after its exit."""
        if is_too_large and self._retry_with_less(message):
            self._process.expect_exit()
        elif self.condition.state is EngineState.RESTARTING:
            self._process.set_reason(message)
        elif self.condition.state in IS_LOADING:
            self._process.expect_exit()
            self._give_up(message)

    # --- exits and restarts -------------------------------------------------------------------------------------

    def _exited(self, how: ProcessExit) -> None:
        if how.is_expected:
            self._user.engine_ended(self.condition.stopped())
            return
        # Some backends end the process where they get no memory.
        if how.code and not how.never_started and self._retry_with_less(_exit_text(how.code)):
            return
        reason = how.reason or f"the engine process ended unexpectedly ({_exit_text(how.code)})"
        if how.never_started:
            reason = f"the engine process {how.reason}"
        logger.error("%s%s", reason, f": {how.stderr}" if how.stderr else "")
        hint = "; is there enough memory?" if how.code == _KILLED and not how.reason else ""
        if self.condition.state is EngineState.WAKING:
            self._sleep_again(f"{reason}{hint}")
            return
        self._user.engine_lost(self.condition.lost(reason))
        self._restart(reason, hint)

    def _restart(self, reason: str, hint: str) -> None:
        """Start it again after a backoff; where nothing was ever loaded, say so with a `hint` and give up."""
        if self.ready is None:
            self._give_up(f"{reason} while loading the model{hint}")
            return
        self._enter(EngineState.RESTARTING)
        self._choose_anew()
        if not self._process.restart(self._is_same_model):
            self._give_up(f"{reason} {self._process.n_restarts + 1} times in a row")
            return
        self.condition.note_trouble(reason)
        logger.warning("starting the engine again (try %d of %s)", self._process.n_restarts, RESTARTS.most)

    def _give_up(self, message: str) -> None:
        """Go back to sleep where a request was to wake it; otherwise fail for good, and whoever runs this ends."""
        if self.condition.state is EngineState.WAKING:
            logger.error("the model could not be loaded again: %s", message)
            self._sleep_again(message)
            return
        self._enter(EngineState.FAILED, message)
        if self._loaded is not None and not self._loaded.done():
            # Whoever waits for it says it to the user.
            self._loaded.set_exception(ModelError(message))
        else:
            logger.error("the engine cannot serve: %s", message)

    def _sleep_again(self, why: str) -> None:
        """Go back to sleep: what the model needs may be free later, so the next request tries again."""
        self._enter(EngineState.SLEEPING, f"the model could not be loaded again: {why}")
        self._user.engine_lost(EngineDown(self.condition.trouble, retry_after_s=_WAKE_AGAIN_S))

    async def _is_same_model(self) -> bool:
        """Check before every load but the first that the file is the same: the text process has its vocabulary."""
        if self._noting is not None:
            await self._noting
        if self._file is None or not await asyncio.to_thread(self._file.is_replaced):
            return True
        path = self.config.model.path
        self._give_up(f"{path} is another file than was loaded before: start the server again to serve it")
        return False

    def _retry_with_less(self, why: str) -> bool:
        """Let the next process take less of the GPU, where the loader chose itself; False where that is no way out."""
        limit = self._retreat.next_limit() if self.condition.state in IS_LOADING else None
        if limit is None:
            return False
        self.config = replace(self.config, vram_limit=limit)
        logger.warning("the model did not fit on the GPU (%s); trying with %.1f GiB of it", why, limit / (1 << 30))
        self._process.relaunch()
        return True

    def _choose_anew(self) -> None:
        """Lift the limit of a retreat: GPU memory that was taken may be free by now."""
        self.config = replace(self.config, vram_limit=None)
        self._retreat.end()

    def _enter(self, state: EngineState, trouble: str | None = None) -> None:
        self._idle_timer.stop()
        self.condition.enter(state, trouble)

    # --- sleep --------------------------------------------------------------------------------------------------

    def _fall_asleep(self) -> None:
        self._unload(f"idle for {self.config.sleep_idle_s:g} s")

    def _unload(self, why: str) -> None:
        logger.info("%s: the model is unloaded, the next request loads it again", why)
        self._enter(EngineState.SLEEPING)
        self._process.end(Shutdown())

    # --- watchdog -----------------------------------------------------------------------------------------------

    async def _watch(self, watchdog: Watchdog) -> None:
        """Look at intervals whether the process still speaks, as long as it is this one."""
        before_s = time.monotonic()
        while True:
            await asyncio.sleep(watchdog.beat_s)
            if watchdog is not self._watchdog or self.condition.state is not EngineState.READY:
                return
            now_s = time.monotonic()
            match watchdog.look(now_s - before_s, has_work=self._user.is_answer_due):
                case Verdict.ASK:
                    self.send(Ping())
                case Verdict.GIVE_UP:
                    self._end_hanging(watchdog.limit_s)
            before_s = now_s

    def _end_hanging(self, limit_s: float) -> None:
        """Tell its requests at once; the next process starts when this one is gone and its memory is free."""
        why = f"the engine gave no sign of life for {limit_s:.3g} s and was ended"
        self._enter(EngineState.RESTARTING, why)
        self._user.engine_lost(self.condition.lost(why))
        self._process.kill(why)


def _exit_text(code: int) -> str:
    if code == _KILLED:
        return f"signal {-code}, as the system sends it where memory ends"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
