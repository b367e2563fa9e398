"""Client of the text process: calls by id, a time limit for each, a new process when one dies.

The process answers in order, so the oldest unanswered call is the one it works on: when the process dies or the
limit passes, that call is refused and the ones behind it are sent again to the next process. Lives on one event loop.
Knows nothing of what the calls do.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import signal
from dataclasses import dataclass, replace
from typing import Any

from ggufd.chat.process.calls import CHECK_GRAMMAR, TextCalls
from ggufd.chat.process.deadline import CallDeadline
from ggufd.chat.process.worker import NAME, Call, CallResult, Refusal, Reply, Started, StartFailed, main
from ggufd.chat.prompt import TextInfo, TextParams
from ggufd.errors import EngineDown, GgufdError, InvalidRequest, ModelError, from_code
from ggufd.processes.child import Child, ChildSpawner
from ggufd.processes.prestarted import PrestartedProcess
from ggufd.processes.supervisor import TOO_SLOW, ChildSupervisor, ProcessExit, RestartPolicy

logger = logging.getLogger(__name__)

CALL_TIMEOUT_S = 10.0
GRAMMAR_TIMEOUT_S = 3.0
START_TIMEOUT_S = 120.0

_MAX_BACKOFF_S = 5.0
_GIVE_UP_AFTER = 5
"""So many restarts in a row, and callers are told at once instead of waiting."""

_KILL_CODE = -signal.SIGKILL if hasattr(signal, "SIGKILL") else None


@dataclass(slots=True)
class _PendingCall:
    """Unanswered call, pickled. `deaths` counts the processes that died while they worked on it."""

    call_id: int
    method: str
    pickled: bytes
    future: asyncio.Future[Any]
    deaths: int = 0


class TextClient(TextCalls):
    """Client of a text process that is restarted whenever it dies.

    `call_timeout_s` counts from when the process turns to the call, not while it waits behind others. On a machine that
    is busy with something else it counts the processor's time, up to four times as long. `prestarted` is the first
    process.
    """

    def __init__(
        self,
        params: TextParams,
        *,
        call_timeout_s: float = CALL_TIMEOUT_S,
        start_timeout_s: float = START_TIMEOUT_S,
        backoff_s: float = 0.1,
        prestarted: PrestartedProcess | None = None,
    ) -> None:
        self._params = params
        self._call_timeout_s = call_timeout_s
        spawn = ChildSpawner(NAME, main, lambda: (self._params,), prestarted)
        policy = RestartPolicy(backoff_s, longest_s=_MAX_BACKOFF_S, start_s=start_timeout_s)
        self._process: ChildSupervisor[Child] = ChildSupervisor(spawn, policy, self._receive, self._exited)
        self._deadline = CallDeadline(self._overrun, self._cpu_s)
        self._pending: dict[int, _PendingCall] = {}
        self._next_id = 0
        self._started: asyncio.Future[TextInfo] | None = None
        self._is_closed = False
        self._overrun_id: int | None = None
        self._last_failure = ""

    async def start(self) -> TextInfo:
        self._started = asyncio.get_running_loop().create_future()
        self._process.launch()
        return await self._started

    async def stop(self) -> None:
        self._is_closed = True
        self._deadline.stop()
        if self._started is not None:
            self._started.cancel()
        self._fail_all(shutting_down())
        self._process.end()
        await self._process.wait_gone()

    @property
    def pid(self) -> int | None:
        """Process id of the one that answers now; None between two."""
        return self._process.link.pid if self._process.link is not None and self._process.is_ready else None

    @property
    def is_running(self) -> bool:
        return self.pid is not None

    def _cpu_s(self) -> float:
        return 0.0 if self._process.link is None else self._process.link.cpu_s

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if self._started is None or self._is_closed or self._is_given_up:
            raise not_running(self._last_failure)
        self._next_id += 1
        call = pickled(Call(self._next_id, method, args, kwargs))
        pending = _PendingCall(self._next_id, method, call, asyncio.get_running_loop().create_future())
        self._pending[self._next_id] = pending
        if self._process.is_ready:
            self._process.send(call)
            if len(self._pending) == 1:
                self._time_next()
        return await pending.future

    @property
    def _is_given_up(self) -> bool:
        return not self._process.is_ready and self._process.n_restarts >= _GIVE_UP_AFTER

    # --- what the process says ----------------------------------------------------------------------------------

    def _receive(self, reply: Reply) -> None:
        match reply:
            case Started(info):
                self._begin(info)
            case StartFailed(message):
                self._process.set_reason(message)
                self._fail_start(message)
            case CallResult(call_id, result):
                self._settle(call_id, result)
            case Refusal(call_id, code, message, param):
                self._settle(call_id, from_code(code, message, param=param))

    def expect(self, info: TextInfo) -> None:
        """Accept no other model file from the next start on."""
        self._params = replace(self._params, header_digest=info.header_digest)

    def _begin(self, info: TextInfo) -> None:
        self.info = info
        self.expect(info)
        self._process.mark_ready()
        self._last_failure = ""
        if self._started is not None and not self._started.done():
            self._started.set_result(info)
        for pending in self._pending.values():
            self._process.send(pending.pickled)
        self._time_next()

    def _settle(self, call_id: int, outcome: Any) -> None:
        pending = self._pending.pop(call_id, None)
        if pending is not None and not pending.future.done():
            if isinstance(outcome, GgufdError):
                pending.future.set_exception(outcome)
            else:
                pending.future.set_result(outcome)
        self._time_next()

    def _fail_all(self, error: GgufdError) -> None:
        for pending in self._pending.values():
            if not pending.future.done():
                pending.future.set_exception(error)
        self._pending.clear()

    # --- exits and restarts -------------------------------------------------------------------------------------

    def _exited(self, how: ProcessExit) -> None:
        self._deadline.stop()
        reason = how.summary
        self._fail_start(self._start_failure(how, reason))
        if self._is_closed:
            return
        logger.warning("The text process ended (%s) and is started again.", reason)
        if how.was_ready and self._pending:
            self._refuse_current(how)
        else:
            # The reason of the first failure says more than that of a kill after it.
            self._last_failure = how.reason or self._last_failure or reason
        self._process.restart()
        if self._is_given_up:
            self._fail_all(EngineDown(f"The text process does not start: {self._last_failure}"))

    def _fail_start(self, message: str) -> None:
        """Fail the first start for good: its model or its template is at fault."""
        if self._started is not None and not self._started.done():
            self._is_closed = True
            self._started.set_exception(ModelError(message))

    def _start_failure(self, how: ProcessExit, reason: str) -> str:
        if how.code == -signal.SIGABRT and not how.is_killed:
            # llama.cpp's own way to say so, about tokens that are missing or of a type that does not belong there.
            return f"{self._params.model.path}: llama.cpp cannot use its vocabulary ({reason}); convert the model again"
        return f"The text process {reason}" if how.never_started else f"The text process could not start: {reason}"

    def _refuse_current(self, how: ProcessExit) -> None:
        """Refuse the call that the process worked on; one killed from outside is no fault of the call, once."""
        pending = next(iter(self._pending.values()))
        pending.deaths += 1
        if how.is_killed and pending.call_id != self._overrun_id:
            # The late one was answered after all while its process was being killed.
            return
        if how.code == _KILL_CODE and not how.is_killed and pending.deaths < 2:
            return
        what = f"it took longer than {self._limit_s(pending):g} s" if how.is_killed else "it stopped the process"
        if pending.method == CHECK_GRAMMAR:
            message = f"This grammar or schema could not be compiled: {what}. Make it smaller or simpler."
        else:
            message = f"This text could not be processed: {what}. Send it shorter, or without very long unbroken runs."
        self._settle(pending.call_id, InvalidRequest(message))

    # --- the time limit -----------------------------------------------------------------------------------------

    def _limit_s(self, pending: _PendingCall) -> float:
        """Time limit of a call. Grammars compile quickly, or they are hostile."""
        return min(self._call_timeout_s, GRAMMAR_TIMEOUT_S) if pending.method == CHECK_GRAMMAR else self._call_timeout_s

    def _time_next(self) -> None:
        """Start the time limit of the oldest call, which the process turns to now."""
        if self._pending and self._process.is_ready:
            self._deadline.begin(self._limit_s(next(iter(self._pending.values()))))
        else:
            self._deadline.stop()

    def _overrun(self) -> None:
        self._overrun_id = next(iter(self._pending), None)
        self._process.kill(TOO_SLOW)


def not_running(why: str = "") -> EngineDown:
    """Refusal of a call where no process answers."""
    return EngineDown(f"The text process is not running. {why}".strip())


def shutting_down() -> EngineDown:
    """Error of calls that are under way when the process is ended."""
    return EngineDown("The server is shutting down.")


def pickled(message: object) -> bytes:
    """Pickle of a message. Raises InvalidRequest where it is nested too deeply for that."""
    # Here and not on the child's writer thread, so that the one who asked for it hears what is wrong with it.
    try:
        return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    except RecursionError:
        raise InvalidRequest("The request is nested too deeply.") from None
