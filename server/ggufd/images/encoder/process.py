"""The encoder process as the server holds it: jobs by id, started again when it dies, a second try for what it did.

Encodings are done in order, so the oldest unanswered one is what it works on: when the process dies that one is tried
once more, then refused alone; all others are sent again to the next process. Lives on one event loop.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

from ggufd.chat.process.deadline import CallDeadline
from ggufd.errors import EngineDown, EngineFailure, GgufdError, ModelError, from_code
from ggufd.images.encoder.messages import (
    Cancel,
    Encode,
    Encoded,
    EncoderOrder,
    EncoderParams,
    EncoderReply,
    EncoderStarted,
    EncoderStartFailed,
    JobFailed,
    Layout,
    Measure,
    Measured,
)
from ggufd.images.encoder.worker import NAME, main
from ggufd.images.pixels import Pixels
from ggufd.processes.child import Child, ChildSpawner
from ggufd.processes.supervisor import TOO_SLOW, ChildSupervisor, ProcessExit, RestartPolicy

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 600.0
ENCODE_TIMEOUT_S = 600.0

_MAX_BACKOFF_S = 5.0
_GIVE_UP_AFTER = 5
"""So many restarts in a row, and callers are told at once instead of waiting."""

_MAX_DEATHS = 2


@dataclass(slots=True)
class _PendingJob:
    """Unanswered job. `deaths` counts the processes that died while they worked on it.

    Nobody waits for one that `is_given_up`.
    """

    order: Measure | Encode
    future: asyncio.Future[Any]
    deaths: int = 0
    is_given_up: bool = False


class EncoderProcess:
    """Client of an encoder process that is started again whenever it dies."""

    def __init__(self, params: EncoderParams, *, encode_timeout_s: float = ENCODE_TIMEOUT_S) -> None:
        self._params = params
        self._encode_timeout_s = encode_timeout_s
        spawn = ChildSpawner(NAME, main, lambda: (self._params,))
        policy = RestartPolicy(0.1, longest_s=_MAX_BACKOFF_S, start_s=START_TIMEOUT_S)
        self._process: ChildSupervisor[Child] = ChildSupervisor(spawn, policy, self._receive, self._exited)
        self._deadline = CallDeadline(self._overrun, self._cpu_s)
        self._pending: dict[int, _PendingJob] = {}
        self._next_id = 0
        self._started: asyncio.Future[None] | None = None
        self._is_closed = False
        self._is_resting = False
        self._last_failure = ""
        self.n_exits = 0
        """Times that it ended without having been told to."""

    async def start(self, temporary: str = "") -> None:
        """Start it. Raises ModelError where the projector cannot be used.

        Where this process is killed it deletes the folder `temporary`.
        """
        self._params = dataclasses.replace(self._params, temporary=temporary)
        self._started = asyncio.get_running_loop().create_future()
        self._process.launch()
        await self._started

    async def stop(self) -> None:
        self._is_closed = True
        self._deadline.stop()
        if self._started is not None:
            self._started.cancel()
        self._fail_all(EngineDown("The server is shutting down."))
        self._process.end()
        await self._process.wait_gone()

    def rest(self) -> None:
        """End the process until the next job. Does nothing while it has one, or is not ready."""
        if self._process.is_ready and not self._pending:
            self._is_resting = True
            self._process.end()

    @property
    def pid(self) -> int | None:
        """Process id of the one that works now; None between two."""
        return self._process.link.pid if self._process.link is not None and self._process.is_ready else None

    async def measure(self, width: int, height: int) -> Layout:
        """Parts of images of one size. Raises InvalidRequest where the projector takes none, or EngineDown."""
        done: Measured = await self._do(Measure(self._new_id(), width, height))
        return done.layout

    async def encode(self, pixels: Pixels, paths: tuple[str, ...]) -> Encoded:
        """Encode an image into files. Cancelled, it is given up. Raises EngineFailure or EngineDown."""
        done: Encoded = await self._do(Encode(self._new_id(), *pixels, paths))
        return done

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    async def _do(self, order: Measure | Encode) -> Any:
        if self._started is None or self._is_closed or self._is_lost:
            raise self._not_running()
        job = _PendingJob(order, asyncio.get_running_loop().create_future())
        self._pending[order.job_id] = job
        if self._process.is_ready:
            self._send(order)
        elif self._is_resting:
            self._is_resting = False
            self._process.relaunch()
        try:
            return await job.future
        except asyncio.CancelledError:
            self._give_up(job)
            raise

    def _send(self, order: EncoderOrder) -> None:
        self._process.send(order)
        self._time_current()

    def _give_up(self, job: _PendingJob) -> None:
        """Nobody waits for a job: the process stops it, and says so, if it has it."""
        job.is_given_up = True
        if job.order.job_id in self._pending and self._process.is_ready:
            self._process.send(Cancel(job.order.job_id))
        else:
            self._pending.pop(job.order.job_id, None)

    # --- what the process says ----------------------------------------------------------------------------------------

    def _receive(self, reply: EncoderReply) -> None:
        match reply:
            case EncoderStarted():
                self._begin()
            case EncoderStartFailed(message):
                self._process.set_reason(message)
                self._fail_start(message)
            case Measured(job_id) | Encoded(job_id):
                self._settle(job_id, reply)
            case JobFailed(job_id, code, message):
                self._settle(job_id, from_code(code, message))

    def _begin(self) -> None:
        self._process.mark_ready()
        self._last_failure = ""
        if self._started is not None and not self._started.done():
            self._started.set_result(None)
        for job in list(self._pending.values()):
            self._send(job.order)

    def _settle(self, job_id: int, outcome: Measured | Encoded | GgufdError) -> None:
        job = self._pending.pop(job_id, None)
        if job is not None and not job.future.done():
            if isinstance(outcome, GgufdError):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)
        self._time_current(is_next=True)

    # --- exits and restarts -------------------------------------------------------------------------------------------

    def _exited(self, how: ProcessExit) -> None:
        self._deadline.stop()
        reason = how.summary
        self._fail_start(f"{self._params.projector.path}: llama.cpp cannot use this projector: {reason}")
        if self._is_closed or how.is_expected:
            return
        self.n_exits += 1
        logger.warning("The encoder of images ended (%s) and is started again.", reason)
        self._drop_given_up()
        if how.was_ready:
            self._count_death(reason)
        else:
            # The reason of the first failure says more than that of a kill after it.
            self._last_failure = how.reason or self._last_failure or reason
        self._process.restart()
        if self._is_lost:
            self._fail_all(self._not_running())

    def _fail_start(self, message: str) -> None:
        """Fail the first start for good: its projector is at fault."""
        if self._started is not None and not self._started.done():
            self._is_closed = True
            self._started.set_exception(ModelError(message))

    def _drop_given_up(self) -> None:
        self._pending = {job_id: job for job_id, job in self._pending.items() if not job.is_given_up}

    def _count_death(self, reason: str) -> None:
        """Count the exit for what the process worked on: sizes, and the oldest encoding."""
        current = self._current()
        for job in list(self._pending.values()):
            if job is not current and isinstance(job.order, Encode):
                continue
            job.deaths += 1
            if job.deaths >= _MAX_DEATHS:
                what = f"The encoder ended twice while it worked on this image: {reason}."
                self._settle(job.order.job_id, EngineFailure(what))

    @property
    def _is_lost(self) -> bool:
        return not self._process.is_ready and self._process.n_restarts >= _GIVE_UP_AFTER

    def _not_running(self) -> EngineDown:
        return EngineDown(f"The encoder of images is not running. {self._last_failure}".strip())

    def _fail_all(self, error: GgufdError) -> None:
        for job_id in list(self._pending):
            self._settle(job_id, error)

    # --- the time limit -----------------------------------------------------------------------------------------------

    def _current(self) -> _PendingJob | None:
        """The encoding that the process works on."""
        return next((job for job in self._pending.values() if isinstance(job.order, Encode)), None)

    def _time_current(self, *, is_next: bool = False) -> None:
        """Start the time limit of the current encoding, where it begins now."""
        n_encodings = sum(isinstance(job.order, Encode) for job in self._pending.values())
        if n_encodings == 0:
            self._deadline.stop()
        elif is_next or n_encodings == 1:
            self._deadline.begin(self._encode_timeout_s)

    def _overrun(self) -> None:
        self._process.kill(TOO_SLOW)

    def _cpu_s(self) -> float:
        return 0.0 if self._process.link is None else self._process.link.cpu_s
