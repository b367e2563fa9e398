"""The engine as the API sees it: submit a request, read its events, stop caring for it.

Lives on the event loop of the API process. Starts the engine's process, starts it again when it dies, and gives every
request that was lost an error. Whatever can be refused at once is refused here, before anything is sent.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ggufd.engine import process
from ggufd.engine.client.limits import TokenBuckets, check_rate, check_waiting
from ggufd.engine.client.retreat import Retreat
from ggufd.engine.client.stream import RequestStream
from ggufd.engine.client.watchdog import Verdict, Watchdog
from ggufd.engine.kv_store.model_file import FirstLoaded
from ggufd.engine.messages.config import EngineConfig
from ggufd.engine.messages.events import Admitted, Embedding, Failed, Output, RequestEvent
from ggufd.engine.messages.reports import (
    Event,
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
from ggufd.engine.messages.requests import (
    Abort,
    ActOnSlot,
    Command,
    EmbedRequest,
    EngineRequest,
    FinishSequence,
    GetQueue,
    GetStats,
    GetSteps,
    Ping,
    Shutdown,
    SlotAction,
)
from ggufd.errors import Draining, EngineDown, GgufdError, InvalidRequest, ModelError, QueueFull, Unavailable
from ggufd.llama.gguf.gguf_header import parts_of
from ggufd.processes.child import Child
from ggufd.processes.prestarted import PrestartedProcess

logger = logging.getLogger(__name__)

_Answer = TypeVar("_Answer", Stats, QueueState, Steps)

_MAX_RESTARTS = 5
_HEALTHY_S = 60.0
_FIRST_BACKOFF_S = 0.5
_SMOOTHING = 0.1
_STOP_S = 5.0
_WAKE_AGAIN_S = 30.0
_KILLED = -9


class EngineState(enum.Enum):
    """Where the engine is. Requests are taken in READY, SLEEPING and WAKING; those of a sleeper wait for the model.

    One that could not wake is SLEEPING again, with its `trouble` told: what it gave back may be free later, so the next
    request tries again.
    """

    LOADING = "loading"
    READY = "ready"
    SLEEPING = "sleeping"
    WAKING = "waking"
    RESTARTING = "restarting"
    FAILED = "failed"
    DRAINING = "draining"


class Link(Protocol):
    """A running engine to talk to: a `Child`, or a thread in tests."""

    def send(self, message: Any) -> None: ...
    def kill(self) -> None: ...
    def join(self, timeout_s: float) -> bool: ...


_ASLEEP = (EngineState.SLEEPING, EngineState.WAKING)
_TAKES_REQUESTS = (EngineState.READY, *_ASLEEP)

Spawn = Callable[[Callable[[list[Event]], None], Callable[[int, str], None]], Link]
"""Starts an engine; gets `on_message` and `on_exit`, which are called on the event loop, and not before it returns."""


class EngineClient:
    """One engine. `start` it inside a running event loop, `wait_ready`, `submit`; `drain` and `stop` at the end.

    `on_progress` gets the share of the model that is loaded, 0 to 1. `spare` is a process to begin with.
    """

    def __init__(
        self,
        config: EngineConfig,
        on_progress: Callable[[float], None] | None = None,
        spawn: Spawn | None = None,
        spare: PrestartedProcess | None = None,
    ) -> None:
        self.config = config
        self._spare = spare
        self.ready: Ready | None = None
        self.trouble = ""
        """Why there is no engine now that there was one, in words for the user; empty where there is, or it sleeps."""
        self._on_progress = on_progress
        self._given_spawn = spawn
        self._spawn = spawn or self._spawn_child
        self._drain_refusal: GgufdError | None = None
        self._is_stopping = False
        self._phase = EngineState.LOADING
        self._link: Link | None = None
        self._generation = 0
        self._streams: dict[int, RequestStream] = {}
        self._ids = itertools.count(1)
        self._ready_future: asyncio.Future[Ready] | None = None
        self._asking: dict[type[Event], list[asyncio.Future[Any]]] = {}
        self._slot_waiters: dict[int, list[asyncio.Future[SlotDone]]] = {}
        self._held: list[tuple[ActOnSlot, asyncio.Future[SlotDone]]] = []
        """What is to be done with slots once the engine is awake, and who waits for it."""
        self._n_restarts = 0
        self._launched_s = 0.0
        self._load_s = 5.0
        self._ready_s = 0.0
        self._service_s = 1.0
        self._buckets = TokenBuckets()
        self._restart_task: asyncio.Task[None] | None = None
        self._sleep_timer: asyncio.TimerHandle | None = None
        self._sleep_task: asyncio.Task[None] | None = None
        self._is_ending = False
        self._retreat = Retreat()
        self._is_retreating = False
        self._watchdog = Watchdog(0, 0)
        self._watch_task: asyncio.Task[None] | None = None
        self._hang = ""
        self._load_error = ""
        self._file: FirstLoaded | None = None
        self._noting: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    # --- life -------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> EngineState:
        return EngineState.DRAINING if self._drain_refusal is not None else self._phase

    def renewed(self) -> EngineClient:
        """Another client for the very model that this one loaded, not started: the text process has its vocabulary."""
        again = EngineClient(self.config, self._on_progress, self._given_spawn)
        again._file, again._noting = self._file, self._noting
        return again

    def start(self) -> None:
        """Start the engine; returns at once."""
        self._loop = asyncio.get_running_loop()
        self._ready_future = self._loop.create_future()
        if self._file is not None:
            self._restart_task = self._loop.create_task(self._load_again())
            return
        self._file = FirstLoaded(self.config.model.path)
        self._launch()

    async def wait_ready(self) -> Ready:
        """What was loaded. Raises `ModelError` when the engine cannot serve this model."""
        assert self._ready_future is not None, "start() comes first"
        return await asyncio.shield(self._ready_future)

    def drain(self, refusal: GgufdError | None = None) -> None:
        """Refuse new requests from now on, with `refusal`; those that run go on."""
        self._drain_refusal = refusal or Draining("the server is shutting down and takes no new requests")

    async def wait_idle(self) -> None:
        """Return when no request is open."""
        await self._idle.wait()

    def abort_all(self, error: GgufdError) -> None:
        """End every open request with `error`."""
        for stream in list(self._streams.values()):
            self._send(Abort(stream.request.request_id))
        self._lose_all(error)

    async def stop(self) -> None:
        """End the engine; open requests fail."""
        self._is_stopping = True
        if self._drain_refusal is None:
            self.drain()
        for task in (self._restart_task, self._sleep_task, self._watch_task):
            if task is not None:
                task.cancel()
        self._disturb()
        self.abort_all(Draining("the server is shutting down"))
        await self._end()

    async def _end(self) -> None:
        """End the process, if there is one, and wait until its memory is given back."""
        if self._link is None:
            return
        self._is_ending = True
        if self._phase not in (EngineState.READY, EngineState.SLEEPING):
            # While it loads it reads no messages.
            self._link.kill()
        self._link.send(Shutdown())
        try:
            await asyncio.wait_for(self._gone.wait(), _STOP_S)
        except TimeoutError:
            self._link.kill()
            await asyncio.wait_for(self._gone.wait(), _STOP_S)

    # --- sleep ------------------------------------------------------------------------------------------------------

    def _doze(self) -> None:
        """Something has ended: sleep when nobody wants anything more, and that stays so."""
        self._disturb()
        is_wanted = bool(self._streams or self._held) or any(self._slot_waiters.values())
        if self.config.sleep_idle_s is not None and self.state is EngineState.READY and not is_wanted:
            self._sleep_timer = self._loop.call_later(self.config.sleep_idle_s, self._fall_asleep)

    def _disturb(self) -> None:
        if self._sleep_timer is not None:
            self._sleep_timer.cancel()
            self._sleep_timer = None

    def _fall_asleep(self) -> None:
        logger.info("idle for %g s: the model is unloaded, the next request loads it again", self.config.sleep_idle_s)
        self._phase = EngineState.SLEEPING
        self._n_restarts = 0
        self._sleep_task = self._loop.create_task(self._end())

    async def _wake(self, ending: asyncio.Task[None] | None) -> None:
        """Load again, but only when what the process before had is free again."""
        logger.info("loading the model again for a request")
        if ending is not None:
            await ending
        await self._load_again()

    def _rouse(self) -> None:
        """Somebody wants a sleeping engine."""
        if self._phase is EngineState.SLEEPING:
            self._phase = EngineState.WAKING
            self._sleep_task = self._loop.create_task(self._wake(self._sleep_task))

    async def _load_again(self) -> None:
        """Start a process for the model that was loaded before; another one has another vocabulary."""
        if await self._is_replaced():
            path = self.config.model.path
            self._give_up(f"{path} is another file than was loaded before: start the server again to serve it")
            return
        self._choose_anew()
        try:
            self._launch()
        except OSError as error:
            self._lose_engine(f"the engine process could not be started ({error})")

    async def _is_replaced(self) -> bool:
        """Whether another model lies there than was loaded first: the text process has the vocabulary of that one."""
        if self._noting is not None:
            await self._noting
        return self._file is not None and await asyncio.to_thread(self._file.is_replaced)

    def _spawn_child(self, on_message: Callable[[list[Event]], None], on_exit: Callable[[int, str], None]) -> Link:
        spare, self._spare = self._spare, None
        return Child(process.NAME, process.main, (self.config,), on_message, on_exit, self._loop, spare)

    def _launch(self) -> None:
        """Start a process. What an older one still says is told apart by its generation."""
        self._generation += 1
        self._launched_s = time.monotonic()
        self._ready_s = math.inf
        self._is_ending = False
        self._gone.clear()
        on_message = functools.partial(self._receive, self._generation)
        on_exit = functools.partial(self._exited, self._generation)
        self._link = self._spawn(on_message, on_exit)

    # --- requests ---------------------------------------------------------------------------------------------------

    def new_request_id(self) -> int:
        return next(self._ids)

    @property
    def n_waiting(self) -> int:
        """Requests that no slot has been found for yet."""
        return sum(1 for stream in self._streams.values() if not stream.is_admitted)

    @property
    def n_running(self) -> int:
        return sum(1 for stream in self._streams.values() if stream.is_admitted)

    @property
    def retry_after_s(self) -> float:
        """When a place in the queue should be free, from how long requests have taken lately."""
        n_slots = self.ready.n_slots if self.ready is not None else 1
        return max(1.0, self._service_s * (self.n_waiting + 1) / n_slots)

    def submit(self, request: EngineRequest | EmbedRequest) -> RequestStream:
        """Queue a request, which wakes a sleeping engine.

        Raises `Draining`, `EngineDown`, `QueueFull` or `TooManyRequests` at once when it cannot be taken.
        """
        self._refuse(request)
        stream = RequestStream(request, self._abort, self._finish)
        self._streams[request.request_id] = stream
        self._idle.clear()
        self._disturb()
        if self._phase is EngineState.READY:
            self._send(request)
        self._rouse()
        return stream

    async def stats(self) -> Stats:
        """A snapshot of the engine. Raises `EngineDown` when there is none to ask."""
        if self._phase is not EngineState.READY:
            raise self._down()
        return await self._ask(GetStats(), Stats)

    async def steps(self) -> Steps:
        """The last steps of the engine. Raises `EngineDown` when there is none to ask."""
        if self._phase in _ASLEEP:
            return Steps(())
        if self._phase is not EngineState.READY:
            raise self._down()
        return await self._ask(GetSteps(), Steps)

    async def queue_state(self) -> QueueState:
        """Every request under way. Raises `EngineDown` when there is none to ask."""
        if self._phase in _ASLEEP:
            return QueueState(())
        if self._phase is not EngineState.READY:
            raise self._down()
        return await self._ask(GetQueue(), QueueState)

    async def _ask(self, question: Command, answer: type[_Answer]) -> _Answer:
        """Send a question; every answer of a kind is for all who asked for one of that kind."""
        future: asyncio.Future[_Answer] = self._loop.create_future()
        self._asking.setdefault(answer, []).append(future)
        self._send(question)
        return await future

    async def act_on_slot(self, command: ActOnSlot) -> SlotDone:
        """Erase, save or restore what an idle slot keeps; to restore wakes a sleeping engine, whose slots are empty.

        Raises `Unavailable` while it is running, `InvalidRequest` when that cannot be done.
        """
        if self._phase in _ASLEEP and command.action is not SlotAction.RESTORE:
            return _of_sleeper(command)
        if self._phase not in _TAKES_REQUESTS:
            raise self._down()
        future: asyncio.Future[SlotDone] = self._loop.create_future()
        self._disturb()
        if self._phase is EngineState.READY:
            self._tell_slot(command, future)
        elif self._drain_refusal is not None:
            raise self._drain_refusal
        else:
            self._held.append((command, future))
            self._rouse()
        return await future

    def _tell_slot(self, command: ActOnSlot, future: asyncio.Future[SlotDone]) -> None:
        self._slot_waiters.setdefault(command.slot, []).append(future)
        self._send(command)

    def _answer_slot(self, done: SlotDone) -> None:
        # The first to ask is the first to be answered.
        waiters = self._slot_waiters.get(done.slot, [])
        future = waiters.pop(0) if waiters else None
        self._doze()
        if future is None or future.done():
            return
        if done.n_tokens is None:
            future.set_exception(Unavailable(f"slot {done.slot} is in use now; try again later"))
        elif done.failure:
            future.set_exception(InvalidRequest(done.failure, param="filename"))
        else:
            future.set_result(done)

    @property
    def _n_free(self) -> int:
        """Slots that nobody holds."""
        n_slots = self.ready.n_slots if self.ready is not None else 0
        return max(0, n_slots - _n_slots(self._streams.values()))

    @property
    def is_full(self) -> bool:
        """Whether as many requests wait as may: one more would be refused."""
        return self.n_waiting >= self.config.max_queue + self._n_free

    def _refuse(self, request: EngineRequest | EmbedRequest) -> None:
        if self._drain_refusal is not None:
            raise self._drain_refusal
        if self._phase not in _TAKES_REQUESTS or self.ready is None:
            raise self._down()
        check_rate(self._buckets, request.principal.account, request.principal.limits)
        n_free = self._n_free
        if self.is_full:
            raise QueueFull(
                f"the queue is full: {self.n_waiting} requests are waiting. Try again in "
                f"{math.ceil(self.retry_after_s)} s, or start the server with a larger --max-queue",
                retry_after_s=self.retry_after_s,
            )
        if request.principal.limits.max_waiting is not None:
            self._refuse_account(request, n_free)

    def _refuse_account(self, request: EngineRequest | EmbedRequest, n_free: int) -> None:
        """Raises `TooManyRequests` when the account has as many requests waiting as it may."""
        assert self.ready is not None
        account, limits = request.principal.account, request.principal.limits
        own = [stream for stream in self._streams.values() if stream.request.principal.account == account]
        n_waiting = sum(not stream.is_admitted for stream in own)
        n_slots = self.ready.n_slots if limits.max_running is None else min(limits.max_running, self.ready.n_slots)
        n_free = min(n_free, max(0, n_slots - _n_slots(own)))
        check_waiting(limits, n_waiting, n_free, max(1.0, self._service_s * (n_waiting + 1) / n_slots))

    def _down(self) -> EngineDown:
        match self._phase:
            case EngineState.LOADING:
                return EngineDown("the model is still being loaded; try again in a few seconds", retry_after_s=2)
            case EngineState.SLEEPING | EngineState.WAKING:
                return EngineDown(
                    "the model is unloaded while nobody uses it; a request loads it", retry_after_s=self._load_s
                )
            case EngineState.FAILED:
                return EngineDown(f"the engine was given up: {self.trouble}", retry_after_s=60)
        return EngineDown(
            f"the engine is being started again; try again in {math.ceil(self._load_s)} s: {self.trouble}",
            retry_after_s=self._load_s,
        )

    def _abort(self, stream: RequestStream) -> None:
        if stream.request.request_id in self._streams:
            self._forget(stream)
            self._send(Abort(stream.request.request_id))

    def _finish(self, stream: RequestStream, index: int) -> None:
        if stream.request.request_id in self._streams:
            self._send(FinishSequence(stream.request.request_id, index))

    def _forget(self, stream: RequestStream) -> None:
        del self._streams[stream.request.request_id]
        if not self._streams:
            self._idle.set()
            self._doze()

    def _lose_all(self, error: GgufdError) -> None:
        for stream in list(self._streams.values()):
            stream.fail(error)
            self._forget(stream)
        held, self._held = self._held, []
        for _, future in held:
            if not future.done():
                future.set_exception(error)

    def _send(self, command: Any) -> None:
        if self._link is not None:
            self._link.send(command)

    # --- what the engine says ---------------------------------------------------------------------------------------

    def _receive(self, generation: int, events: list[Event]) -> None:
        if generation != self._generation:
            return
        self._watchdog.heard()
        for event in events:
            match event:
                case Output() | Admitted() | Failed():
                    self._deliver(event)
                case LoadProgress(fraction):
                    if self._on_progress is not None:
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
                    if not (is_too_large and self._begin_retreat(message)):
                        self._load_failed(message)
                case Stats() | QueueState() | Steps():
                    self._answer(event)
                case SlotDone():
                    self._answer_slot(event)
                case Pong():
                    pass
                case _:
                    self._deliver(event)

    def _deliver(self, event: RequestEvent) -> None:
        stream = self._streams.get(event.request_id)
        if stream is None:
            return
        if stream.request.principal.limits.tokens_per_minute is not None:
            self._charge(stream.request, event)
        stream.put(event)
        if stream.is_done:
            self._forget(stream)
            if stream.is_admitted:
                took_s = time.monotonic() - stream.admitted_s
                self._service_s += _SMOOTHING * (took_s - self._service_s)

    def _charge(self, request: EngineRequest | EmbedRequest, event: RequestEvent) -> None:
        account, limits = request.principal.account, request.principal.limits
        if isinstance(event, Admitted) and isinstance(request, EngineRequest):
            self._buckets.charge(account, limits, len(request.prompt) - event.cached_tokens)
        elif isinstance(event, Output):
            self._buckets.charge(account, limits, len(event.tokens))
        elif isinstance(event, Embedding):
            self._buckets.charge(account, limits, event.n_tokens)

    def _became_ready(self, ready: Ready) -> None:
        self.ready = ready
        self.trouble = ""
        self._retreat.end()
        self._phase = EngineState.READY
        self._ready_s = time.monotonic()
        self._load_s = max(1.0, self._ready_s - self._launched_s)
        self._watchdog = Watchdog(self.config.step_timeout_s, ready.model.size_bytes)
        self._watch_task = self._loop.create_task(self._watch(self._generation))
        # There are some only where they woke it. What is restored is of use to who asks next.
        held, self._held = self._held, []
        for command, future in held:
            self._tell_slot(command, future)
        for stream in self._streams.values():
            self._send(stream.request)
        self._doze()
        if self._noting is None and self._file is not None:
            self._noting = self._loop.create_task(asyncio.to_thread(self._file.note))
        if self._ready_future is not None and not self._ready_future.done():
            self._ready_future.set_result(ready)

    def _answer(self, answer: Stats | QueueState | Steps) -> None:
        for future in self._asking.pop(type(answer), []):
            if not future.done():
                future.set_result(answer)

    def _load_failed(self, message: str) -> None:
        """At the start it is said and done. Later the model could be loaded before: it is tried again."""
        if self.ready is None or self._phase is EngineState.WAKING:
            self._give_up(message)
        else:
            self._load_error = message

    def _give_up(self, message: str) -> None:
        """A sleeper sleeps on, until the next request; otherwise it is over, and whoever runs this client ends."""
        if self._phase is EngineState.WAKING:
            logger.error("the model could not be loaded again: %s", message)
            self._sleep_on(message)
            return
        self._phase = EngineState.FAILED
        self.trouble = self._public(message)
        if self._ready_future is not None and not self._ready_future.done():
            # Whoever waits for it says it to the user.
            self._ready_future.set_exception(ModelError(message))
        else:
            logger.error("the engine cannot serve: %s", message)

    def _sleep_on(self, why: str) -> None:
        """It cannot wake now: who waited for it is told, and who asks whether it is well."""
        self._phase = EngineState.SLEEPING
        self._sleep_task = None
        self.trouble = self._public(f"the model could not be loaded again: {why}")
        self._lose_all(EngineDown(self.trouble, retry_after_s=_WAKE_AGAIN_S))

    def _exited(self, generation: int, code: int, stderr: str) -> None:
        """The process is gone: everybody who waited for it is told, and it is started again if it had been well."""
        if generation != self._generation:
            return
        self._gone.set()
        if not self._is_retreating and code:
            # Some backends end the process where they get no memory.
            self._begin_retreat(_exit_text(code))
        if self._is_retreating:
            self._is_retreating = False
            self._launch()
            return
        self._lose_answers(EngineDown("the engine has stopped; try again soon", retry_after_s=self._load_s))
        if self._is_stopping or self._is_ending or self._phase in (EngineState.FAILED, EngineState.SLEEPING):
            return
        reason = self._hang or self._load_error or f"the engine process ended unexpectedly ({_exit_text(code)})"
        self._hang = self._load_error = ""
        self._lose_engine(reason, stderr, "; is there enough memory?" if code == _KILLED else "")

    def _lose_engine(self, reason: str, stderr: str = "", hint: str = "") -> None:
        """There is none now: whoever waits for it is told, and it is started again, a sleeper by the next request."""
        logger.error("%s%s", reason, f": {stderr}" if stderr else "")
        if self._phase is EngineState.WAKING:
            self._sleep_on(f"{reason}{hint}")
            return
        self._lose_all(self._lost(reason))
        self._restart(reason, hint)

    def _public(self, message: str) -> str:
        """The same without the folders of what is loaded, which are nobody's business."""
        for path in _files_of(self.config):
            message = message.replace(path, Path(path).name)
        return message

    async def _watch(self, generation: int) -> None:
        """Look whether the engine still speaks, as long as it is this one."""
        before_s = time.monotonic()
        while generation == self._generation and self._phase is EngineState.READY:
            await asyncio.sleep(self._watchdog.beat_s)
            now_s = time.monotonic()
            has_work = bool(self._streams or self._asking or self._slot_waiters)
            match self._watchdog.look(now_s - before_s, has_work=has_work):
                case Verdict.ASK:
                    self._send(Ping())
                case Verdict.GIVE_UP:
                    self._end_hanging()
            before_s = now_s

    def _end_hanging(self) -> None:
        """Its requests are told at once; the next process starts when this one is gone and its memory is free."""
        self._hang = f"the engine gave no sign of life for {self._watchdog.limit_s:.3g} s and was ended"
        self._phase = EngineState.RESTARTING
        self.trouble = self._hang
        self._lose_answers(self._lost(self._hang))
        self._lose_all(self._lost(self._hang))
        assert self._link is not None
        self._link.kill()

    def _begin_retreat(self, why: str) -> bool:
        """Let the next process take less of the GPU, where the loader chose itself; False where that is no way out."""
        is_loading = self._phase in (EngineState.LOADING, EngineState.WAKING, EngineState.RESTARTING)
        limit = None if self._is_stopping or self._is_ending or not is_loading else self._retreat.next_limit()
        if limit is None:
            return False
        self.config = replace(self.config, vram_limit=limit)
        logger.warning("the model did not fit on the GPU (%s); trying with %.1f GiB of it", why, limit / (1 << 30))
        self._is_retreating = True
        return True

    def _choose_anew(self) -> None:
        """What could not be had on the GPU before may be free by now."""
        self.config = replace(self.config, vram_limit=None)
        self._retreat.end()

    def _lost(self, reason: str) -> EngineDown:
        told = f"{self._public(reason)}; the request is lost. It is being started again"
        return EngineDown(told, retry_after_s=self._load_s)

    def _lose_answers(self, error: GgufdError) -> None:
        acting = [future for waiters in self._slot_waiters.values() for future in waiters]
        asking = [future for waiters in self._asking.values() for future in waiters]
        lost: list[asyncio.Future[Any]] = [*asking, *acting]
        for future in lost:
            if not future.done():
                future.set_exception(error)
        self._asking.clear()
        self._slot_waiters.clear()

    def _restart(self, reason: str, hint: str = "") -> None:
        """Start it again after a while; where nothing was ever loaded, say so with a `hint` and give up."""
        if self.ready is None:
            self._give_up(f"{reason} while loading the model{hint}")
            return
        if time.monotonic() - self._ready_s > _HEALTHY_S:
            self._n_restarts = 0
        if self._n_restarts >= _MAX_RESTARTS:
            self._give_up(f"{reason} {_MAX_RESTARTS + 1} times in a row")
            return
        self._phase = EngineState.RESTARTING
        self.trouble = self._public(reason)
        delay_s = _FIRST_BACKOFF_S * (2**self._n_restarts - 1)
        self._n_restarts += 1
        self._restart_task = self._loop.create_task(self._launch_later(delay_s))

    async def _launch_later(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        logger.warning("starting the engine again (try %d of %d)", self._n_restarts, _MAX_RESTARTS)
        await self._load_again()


def _files_of(config: EngineConfig) -> list[str]:
    model = config.model
    draft = [] if config.draft is None else [config.draft.model.path]
    parts = map(str, parts_of(Path(model.path)))
    return [*parts, *model.loras, *(vector.path for vector in model.control_vectors), *draft]


def _of_sleeper(command: ActOnSlot) -> SlotDone:
    """What comes of it where nothing is loaded: nothing to erase. Raises InvalidRequest where it is to be saved."""
    if command.action is SlotAction.SAVE:
        raise InvalidRequest(
            f"slot {command.slot} keeps nothing that could be saved: the model is unloaded while nobody uses it, and "
            "what its slots held went with it (--cache-disk keeps chats over that); save a slot before it sleeps"
        )
    return SlotDone(command.slot, 0)


def _n_slots(streams: Iterable[RequestStream]) -> int:
    """Slots that their requests hold, or are about to."""
    return sum(s.request.n for s in streams if s.is_admitted and isinstance(s.request, EngineRequest))


def _exit_text(code: int) -> str:
    if code == _KILLED:
        return f"signal {-code}, as the system sends it where memory ends"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
