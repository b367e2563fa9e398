"""Client of the engine: submit requests, read their events, ask for statistics, act on slots.

Lives on the event loop of the API's process. What can be refused at once is refused here (`limits`, and by the state
of the engine), before anything is sent. The engine's process is the supervisor's concern.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

from ggufd.engine.client.callers import EngineCallers
from ggufd.engine.client.limits import SubmissionLimits
from ggufd.engine.client.open_requests import OpenRequests
from ggufd.engine.client.questions import Questions, act_on_nothing
from ggufd.engine.client.state import ASLEEP, TAKES_REQUESTS, EngineState
from ggufd.engine.client.stream import RequestStream
from ggufd.engine.client.supervisor import EngineSupervisor
from ggufd.engine.messages.config import EngineConfig
from ggufd.engine.messages.reports import LiveState, QueueState, Ready, SlotDone, Stats, Steps
from ggufd.engine.messages.requests import (
    Abort,
    ActOnSlot,
    Command,
    EmbedRequest,
    EngineRequest,
    FinishSequence,
    GetLive,
    GetQueue,
    GetStats,
    GetSteps,
    SlotAction,
)
from ggufd.errors import Draining, GgufdError, Unavailable
from ggufd.processes.prestarted import PrestartedProcess
from ggufd.processes.supervisor import Link, Spawn


class EngineClient:
    """Client of one engine. `start` it inside a running event loop, `wait_ready`, `submit`; at the end `drain`, `stop`.

    `on_progress` gets the share of the model that is loaded, 0 to 1. `prestarted` is a process to begin with; `spawn`
    replaces how processes are started.
    """

    def __init__(
        self,
        config: EngineConfig,
        on_progress: Callable[[float], None] | None = None,
        spawn: Spawn[Link] | None = None,
        prestarted: PrestartedProcess | None = None,
    ) -> None:
        self._on_progress = on_progress
        self._spawn = spawn
        self._requests = OpenRequests()
        self._questions = Questions(self._send)
        self._limits = SubmissionLimits(self._requests, config.max_queue)
        self._callers = EngineCallers(self._requests, self._questions, self._limits.charge)
        self._supervisor = EngineSupervisor(config, self._callers, on_progress, spawn, prestarted)
        self._ids = itertools.count(1)
        self._drain_refusal: GgufdError | None = None
        self._is_ending = False
        self._watchers: list[Callable[[EngineState], None]] = []

    # --- life -------------------------------------------------------------------------------------------------------

    @property
    def config(self) -> EngineConfig:
        return self._supervisor.config

    @property
    def state(self) -> EngineState:
        return EngineState.DRAINING if self._drain_refusal is not None else self._supervisor.state

    @property
    def ready(self) -> Ready | None:
        """What was loaded; None before that."""
        return self._supervisor.ready

    @property
    def trouble(self) -> str:
        """Why there is no engine now that there was one, in words for the user; empty where there is, or it sleeps."""
        return self._supervisor.trouble

    def renewed(self) -> EngineClient:
        """Another client for the very model that this one loaded, not started: the text process has its vocabulary."""
        again = EngineClient(replace(self.config, vram_limit=None), self._on_progress, self._spawn)
        again._supervisor.expect_model_of(self._supervisor)
        return again

    def start(self) -> None:
        """Start the engine; returns at once."""
        self._supervisor.start()

    async def wait_ready(self) -> Ready:
        """What was loaded. Raises ModelError when the engine cannot serve this model."""
        return await self._supervisor.wait_ready()

    def drain(self, refusal: GgufdError | None = None) -> None:
        """Refuse new requests from now on, with `refusal`; those that run go on, but for background work."""
        self._is_ending = True
        self._drain_refusal = refusal or Draining("the server is shutting down and takes no new requests")
        for stream in self._requests:
            if stream.request.principal.is_background:
                stream.refuse(self._drain_refusal)

    def pause(self) -> None:
        """Refuse new requests until `resume`; those that run or wait go on. Nothing of an engine that is to end."""
        if self._drain_refusal is None:
            self._drain_refusal = Unavailable(
                "the server was told to drain and takes no new requests for now; try again later", retry_after_s=10
            )
            self._tell(EngineState.DRAINING)

    def resume(self) -> None:
        """Take requests again after `pause`. Raises Draining where the engine is to end."""
        if self._is_ending:
            raise Draining("the server is shutting down, or another model is being loaded: that cannot be taken back")
        if self._drain_refusal is not None:
            self._drain_refusal = None
            self._tell(self.state)

    def sleep(self) -> None:
        """Unload the model now; the next request loads it again. Raises Unavailable while requests are under way."""
        self._supervisor.sleep()

    def watch(self, tell: Callable[[EngineState], None]) -> None:
        """Call `tell` with every state that the engine enters from now on. Must be quick and raise nothing."""
        self._watchers.append(tell)
        self._supervisor.watch(tell)

    def _tell(self, state: EngineState) -> None:
        for tell in self._watchers:
            tell(state)

    async def wait_idle(self) -> None:
        """Return when no request is open."""
        await self._requests.wait_empty()

    def abort_all(self, error: GgufdError) -> None:
        """End every open request with `error`."""
        for stream in self._requests:
            self._send(Abort(stream.request.request_id))
        self._callers.fail_waiting(error)
        self._supervisor.rest()

    async def stop(self) -> None:
        """End the engine; open requests fail."""
        if self._drain_refusal is None:
            self.drain()
        self.abort_all(Draining("the server is shutting down"))
        await self._supervisor.stop()

    # --- requests ---------------------------------------------------------------------------------------------------

    def new_request_id(self) -> int:
        return next(self._ids)

    @property
    def n_waiting(self) -> int:
        """Requests without a slot yet."""
        return self._requests.n_waiting

    @property
    def n_running(self) -> int:
        return self._requests.n_running

    @property
    def is_full(self) -> bool:
        """Whether as many requests wait as may: one more would be refused."""
        return self._limits.is_full(self._n_slots)

    @property
    def _n_slots(self) -> int:
        return 0 if self.ready is None else self.ready.n_slots

    def submit(self, request: EngineRequest | EmbedRequest) -> RequestStream:
        """Queue a request, which wakes a sleeping engine.

        Raises Draining, EngineDown, QueueFull or TooManyRequests at once when it cannot be taken.
        """
        self._refuse_while_draining()
        self._supervisor.require(TAKES_REQUESTS)
        self._limits.check(request, self._n_slots)
        stream = RequestStream(request, self._abort, self._finish)
        self._requests.add(stream)
        if self._supervisor.state is EngineState.READY:
            self._send(request)
        self._supervisor.use()
        return stream

    def find(self, request_id: int) -> RequestStream | None:
        """The open request with this id."""
        return self._requests.get(request_id)

    def _refuse_while_draining(self) -> None:
        if self._drain_refusal is not None:
            raise self._drain_refusal

    def _send(self, command: Command) -> None:
        self._supervisor.send(command)

    def _abort(self, stream: RequestStream) -> None:
        if stream in self._requests:
            self._requests.remove(stream)
            self._send(Abort(stream.request.request_id))
            self._supervisor.rest()

    def _finish(self, stream: RequestStream, index: int) -> None:
        if stream in self._requests:
            self._send(FinishSequence(stream.request.request_id, index))

    # --- questions --------------------------------------------------------------------------------------------------

    async def stats(self) -> Stats:
        """A snapshot of the engine. Raises EngineDown when there is none to ask."""
        self._supervisor.require({EngineState.READY})
        return await self._questions.ask(GetStats(), Stats)

    async def steps(self) -> Steps:
        """The last steps of the engine; none of one that sleeps. Raises EngineDown when there is none to ask."""
        self._supervisor.require(TAKES_REQUESTS)
        return Steps(()) if self._supervisor.state in ASLEEP else await self._questions.ask(GetSteps(), Steps)

    async def queue_state(self) -> QueueState:
        """Every request under way; none of one that sleeps. Raises EngineDown when there is none to ask."""
        self._supervisor.require(TAKES_REQUESTS)
        return QueueState(()) if self._supervisor.state in ASLEEP else await self._questions.ask(GetQueue(), QueueState)

    async def live_state(self) -> LiveState:
        """State for the live view. Raises EngineDown when there is no engine to ask."""
        self._supervisor.require({EngineState.READY})
        return await self._questions.ask(GetLive(), LiveState)

    async def act_on_slot(self, command: ActOnSlot) -> SlotDone:
        """Erase, save or restore what an idle slot keeps; to restore wakes a sleeping engine, whose slots are empty.

        Raises Unavailable while the slot is running, InvalidRequest when that cannot be done.
        """
        self._supervisor.require(TAKES_REQUESTS)
        is_asleep = self._supervisor.state in ASLEEP
        if is_asleep and command.action is not SlotAction.RESTORE:
            return act_on_nothing(command)
        if is_asleep:
            self._refuse_while_draining()
        answer = self._questions.hold(command) if is_asleep else self._questions.act(command)
        self._supervisor.use()
        return await answer
