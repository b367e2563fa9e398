"""Client of the engine: submit requests and read their events.

Lives on the event loop of the API's process. What can be refused at once is refused here (`limits`, and by the state
of the engine), before anything is sent. The engine's process is the supervisor's concern.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from ggufd.engine.client.callers import EngineCallers
from ggufd.engine.client.intake import Intake
from ggufd.engine.client.limits import SubmissionLimits, TokenBuckets, n_tokens_of
from ggufd.engine.client.open_requests import OpenRequests
from ggufd.engine.client.questions import Questions
from ggufd.engine.client.reports import EngineReports
from ggufd.engine.client.state import TAKES_REQUESTS, EngineState
from ggufd.engine.client.stream import RequestStream
from ggufd.engine.client.supervisor import EngineSupervisor
from ggufd.engine.messages.config import EngineConfig
from ggufd.engine.messages.events import Output, RequestEvent
from ggufd.engine.messages.reports import LimitUse, Ready, UseElsewhere
from ggufd.engine.messages.requests import (
    Abort,
    ChargeElsewhere,
    Command,
    EmbedRequest,
    EngineRequest,
    FinishSequence,
    HoldElsewhere,
)
from ggufd.engine.queueing.fairness import TokenCounters
from ggufd.errors import Draining, GgufdError
from ggufd.keys.places import DISPLACED
from ggufd.processes.prestarted import PrestartedProcess
from ggufd.processes.supervisor import Link, Spawn

_ELSEWHERE_S = 5.0
"""How long the word on what accounts hold at other servers is believed: five times as long as until the next one."""


class EngineClient:
    """Client of one engine. `start` it inside a running event loop, `wait_ready`, `submit`; at the end `drain`, `stop`.

    `intake` opens and closes it for new requests; `reports` answers questions about the engine, and acts on its slots.
    `on_progress` gets the share of the model that is loaded, 0 to 1. `prestarted` is a process to begin with; `spawn`
    replaces how processes are started. `buckets` are the rate limits' where they outlast the engine; `ids` gives the
    numbers of requests where other engines have some too; `served` is charged with what the accounts get.
    """

    def __init__(
        self,
        config: EngineConfig,
        on_progress: Callable[[float], None] | None = None,
        spawn: Spawn[Link] | None = None,
        prestarted: PrestartedProcess | None = None,
        buckets: TokenBuckets | None = None,
        ids: Iterator[int] | None = None,
        served: TokenCounters | None = None,
    ) -> None:
        self._served = served
        self._buckets = TokenBuckets() if buckets is None else buckets
        self._on_progress = on_progress
        self._spawn = spawn
        self._requests = OpenRequests()
        self._questions = Questions(self._send)
        self._limits = SubmissionLimits(self._requests, config.max_queue, self._buckets)
        self._prompt_cost = config.prompt_cost
        self._callers = EngineCallers(self._requests, self._questions, self._charge)
        self._supervisor = EngineSupervisor(config, self._callers, on_progress, spawn, prestarted)
        self.intake = Intake(self._supervisor.condition)
        self.reports = EngineReports(self._supervisor, self._questions, self.intake)
        self._ids = itertools.count(1) if ids is None else ids
        self._forgetting: asyncio.TimerHandle | None = None

    # --- life -------------------------------------------------------------------------------------------------------

    @property
    def config(self) -> EngineConfig:
        return self._supervisor.config

    @property
    def state(self) -> EngineState:
        return EngineState.DRAINING if self.intake.refusal is not None else self._supervisor.condition.state

    @property
    def ready(self) -> Ready | None:
        """What was loaded; None before that."""
        return self._supervisor.ready

    @property
    def trouble(self) -> str:
        """Why there is no engine now that there was one, in words for the user; empty where there is, or it sleeps."""
        return self._supervisor.condition.trouble

    def renewed(self) -> EngineClient:
        """Another client for the very model that this one loaded, not started: the text process has its vocabulary."""
        again = EngineClient(
            replace(self.config, vram_limit=None),
            self._on_progress,
            self._spawn,
            buckets=self._buckets,
            ids=self._ids,
            served=self._served,
        )
        again._supervisor.expect_model_of(self._supervisor)
        return again

    def carry(self, counters: Iterable[tuple[str, float]]) -> None:
        """Begin with these counters of accounts, which have waited for this model already. Before `start`."""
        self._supervisor.config = replace(self.config, carried=tuple(counters))

    def start(self) -> None:
        """Start the engine; returns at once."""
        self._supervisor.start()

    async def wait_ready(self) -> Ready:
        """What was loaded. Raises ModelError when the engine cannot serve this model."""
        return await self._supervisor.wait_ready()

    def drain(self, refusal: GgufdError | None = None) -> None:
        """Refuse new requests from now on, with `refusal`; those that run go on, but for background work."""
        refusal = self.intake.close(refusal)
        for stream in self._requests:
            if stream.request.principal.is_background:
                stream.refuse(refusal)

    def sleep(self) -> None:
        """Unload the model now; the next request loads it again. Raises Unavailable while requests are under way."""
        self._supervisor.sleep()

    def watch(self, tell: Callable[[EngineState], None]) -> None:
        """Call `tell` with every state that the engine enters from now on. Must be quick and raise nothing."""
        self._supervisor.condition.watch(tell)

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
        if self._forgetting is not None:
            self._forgetting.cancel()
        if self.intake.refusal is None:
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

        In a full queue it may take the place of another account's request. Raises Draining, EngineDown, QueueFull or
        TooManyRequests at once when it cannot be taken.
        """
        self.intake.check()
        self._supervisor.condition.require(TAKES_REQUESTS)
        displaced = self._limits.check(request, self._n_slots)
        if displaced is not None:
            displaced.refuse(self._limits.full(self._n_slots, DISPLACED))
        stream = RequestStream(request, self._abort, self._finish)
        self._requests.add(stream)
        if self._supervisor.condition.state is EngineState.READY:
            self._send(request)
        self._supervisor.use()
        return stream

    def charge_elsewhere(self, costs: Sequence[tuple[str, float]]) -> None:
        """Charge accounts what other servers served them, by their weights. Without an engine nobody waits for it."""
        if self._supervisor.condition.state is EngineState.READY:
            self._send(ChargeElsewhere(tuple(costs)))

    def limit_use(self) -> list[LimitUse]:
        """What accounts with limits use of them here, but for the slots, which the engine's live state tells."""
        return self._limits.use(self._n_slots)

    def count_elsewhere(self, uses: Sequence[UseElsewhere]) -> None:
        """Count what accounts use of their limits at other servers. Without another word it is forgotten soon."""
        self._hold_elsewhere(uses)
        if self._forgetting is not None:
            self._forgetting.cancel()
            self._forgetting = None
        if uses:
            self._forgetting = asyncio.get_running_loop().call_later(_ELSEWHERE_S, self._hold_elsewhere, ())

    def _hold_elsewhere(self, uses: Sequence[UseElsewhere]) -> None:
        self._limits.count_elsewhere(uses)
        if self._supervisor.condition.state is EngineState.READY:
            self._send(HoldElsewhere(tuple((one.account, one.running) for one in uses if one.running)))

    def find(self, request_id: int) -> RequestStream | None:
        """The open request with this id."""
        return self._requests.get(request_id)

    def _charge(self, request: EngineRequest | EmbedRequest, event: RequestEvent) -> None:
        """Charge what an event stands for to its account's limits, and to what all engines together served it."""
        principal = request.principal
        if principal.limits.tokens_per_minute is not None:
            self._limits.charge(request, event)
        if self._served is not None and not principal.is_background:
            cost = n_tokens_of(request, event) * (1.0 if isinstance(event, Output) else self._prompt_cost)
            self._served.charge(principal.account, cost, principal.limits.weight)

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
