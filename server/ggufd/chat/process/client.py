"""The async side of the text process: calls by id, a time limit each, a new process when one dies.

The process answers in order, so the oldest unanswered call is the one it works on: when the process dies or the
limit passes, that call is refused and the ones behind it are sent again to the next process. Lives on one event loop.
Knows nothing of what the calls do.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import pickle
import signal
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ggufd.chat.process.worker import NAME, Call, CallResult, Refusal, Reply, Started, StartFailed, main
from ggufd.chat.prompt import ChatPrompt, RenderedChat, TextInfo, TextParams
from ggufd.engine.messages.sampling import Grammar
from ggufd.errors import EngineDown, GgufdError, InvalidRequest, ModelError, from_code
from ggufd.processes.child import Child
from ggufd.processes.prestarted import PrestartedProcess

if TYPE_CHECKING:
    from ggufd.chat.process.text import TextModel

logger = logging.getLogger(__name__)

CALL_TIMEOUT_S = 10.0
GRAMMAR_TIMEOUT_S = 3.0
START_TIMEOUT_S = 120.0

_PATIENCE = 4
"""So many times as long as it may take a call may last where others have the processor."""

_CPU_TICK_S = 0.01
"""The processor's time is counted in these."""

_MAX_BACKOFF_S = 5.0
_GIVE_UP_AFTER = 5
"""So many starts that failed in a row, and callers are told at once instead of waiting."""

_GRAMMAR = "check_grammar"
_KILL_CODE = -signal.SIGKILL if hasattr(signal, "SIGKILL") else None


class TextCalls(ABC):
    """What the API asks of the text process, whoever runs it. `info` is there after `start`."""

    info: TextInfo

    @abstractmethod
    async def start(self) -> TextInfo:
        """Get ready. Raises ModelError when the model cannot be used."""

    @abstractmethod
    async def stop(self) -> None:
        """End; calls under way raise EngineDown."""

    @abstractmethod
    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Run a method of `TextModel`. Raises what it raises, InvalidRequest when it crashes or takes too long."""

    async def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        tokens: list[int] = await self._call("encode", text, add_special=add_special, parse_special=parse_special)
        return tokens

    async def encode_inputs(self, texts: Sequence[str], limit: int | None = None) -> list[list[int]]:
        tokens: list[list[int]] = await self._call("encode_inputs", list(texts), limit)
        return tokens

    async def encode_pairs(self, query: str, documents: Sequence[str]) -> list[list[int]]:
        tokens: list[list[int]] = await self._call("encode_pairs", query, list(documents))
        return tokens

    async def encode_infill(
        self, prefix: str, suffix: str, files: Sequence[tuple[str, str]] = (), limit: int | None = None
    ) -> list[int]:
        tokens: list[int] = await self._call("encode_infill", prefix, suffix, list(files), limit)
        return tokens

    async def decode(self, tokens: Sequence[int]) -> str:
        text: str = await self._call("decode", list(tokens))
        return text

    async def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        pieces: list[bytes] = await self._call("pieces", list(tokens))
        return pieces

    async def render(self, chat: ChatPrompt) -> RenderedChat:
        rendered: RenderedChat = await self._call("render", chat)
        return rendered

    async def check_grammar(self, grammar: Grammar) -> None:
        """Raises InvalidRequest unless the grammar can be enforced."""
        await self._call(_GRAMMAR, grammar.kind.value, grammar.text, grammar.frame)

    async def check_json(self, schema: str, text: str) -> None:
        """Raises EngineFailure unless a finished text is what its schema asks for."""
        await self._call("check_json", schema, text)


@dataclass(slots=True)
class _PendingCall:
    """A call without an answer, pickled. `deaths` counts the processes that died while it was worked on."""

    call_id: int
    method: str
    pickled: bytes
    future: asyncio.Future[Any]
    deaths: int = 0


class TextClient(TextCalls):
    """Calls to a text process that is started again whenever it dies.

    `call_timeout_s` counts from when the process turns to the call, not while it waits behind others. On a machine that
    is busy with something else it counts the processor's time, up to four times as long. `spare` is a process to begin
    with.
    """

    def __init__(
        self,
        params: TextParams,
        *,
        call_timeout_s: float = CALL_TIMEOUT_S,
        start_timeout_s: float = START_TIMEOUT_S,
        backoff_s: float = 0.1,
        spare: PrestartedProcess | None = None,
    ) -> None:
        self._params = params
        self._spare = spare
        self._call_timeout_s = call_timeout_s
        self._start_timeout_s = start_timeout_s
        self._backoff_s = backoff_s
        self._pending: dict[int, _PendingCall] = {}
        self._next_id = 0
        self._generation = 0
        self._started: asyncio.Future[TextInfo] | None = None
        self._child: Child | None = None
        self._is_ready = False
        self._is_stopping = False
        self._timed_out = False
        self._overrun_id: int | None = None
        self._failures = 0
        self._last_failure = ""
        self._begun_s = self._begun_cpu_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._restart: asyncio.TimerHandle | None = None

    async def start(self) -> TextInfo:
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.create_future()
        self._spawn()
        return await self._started

    async def stop(self) -> None:
        self._is_stopping = True
        self._cancel_timers()
        if self._started is not None:
            self._started.cancel()
        self._fail_all(EngineDown("The server is shutting down."))
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            await asyncio.to_thread(child.join, 5.0)

    @property
    def pid(self) -> int | None:
        """The process that answers now, or None between two."""
        return self._child.pid if self._child is not None and self._is_ready else None

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if self._started is None or self._is_stopping or self._failures >= _GIVE_UP_AFTER:
            raise EngineDown(f"The text process is not running. {self._last_failure}".strip())
        self._next_id += 1
        call = pickled(Call(self._next_id, method, args, kwargs))
        pending = _PendingCall(self._next_id, method, call, self._loop.create_future())
        self._pending[self._next_id] = pending
        if self._is_ready:
            self._send(pending)
            if len(self._pending) == 1:
                self._begin_watch()
        return await pending.future

    # --- the process's life -------------------------------------------------------------------------------------

    def _spawn(self) -> None:
        self._is_ready = False
        self._timed_out = False
        self._generation += 1
        # A child that was given up may still speak: its number tells.
        on_message = functools.partial(self._receive, self._generation)
        on_exit = functools.partial(self._died, self._generation)
        try:
            spare, self._spare = self._spare, None
            self._child = Child(NAME, main, (self._params,), on_message, on_exit, self._loop, spare)
        except OSError as error:
            self._died(self._generation, error.errno or 0, str(error))
            return
        self._watch(self._start_timeout_s)

    def _receive(self, generation: int, reply: Reply) -> None:
        if generation != self._generation:
            return
        match reply:
            case Started(info):
                self._begin(info)
            case StartFailed(message):
                self._last_failure = message
                self._fail_start(message)
            case CallResult(call_id, result):
                self._settle(call_id, result)
            case Refusal(call_id, code, message, param):
                self._settle(call_id, from_code(code, message, param=param))

    def _begin(self, info: TextInfo) -> None:
        self.info = info
        self._is_ready = True
        self._failures = 0
        self._last_failure = ""
        if self._started is not None and not self._started.done():
            self._started.set_result(info)
        for pending in self._pending.values():
            self._send(pending)
        self._watch_next()

    def _fail_start(self, message: str) -> None:
        """The first start is not tried again: its model or its template is at fault."""
        if self._started is not None and not self._started.done():
            self._is_stopping = True
            self._started.set_exception(ModelError(message))

    def _send(self, pending: _PendingCall) -> None:
        if self._child is not None:
            self._child.send(pending.pickled)

    def _settle(self, call_id: int, outcome: Any) -> None:
        pending = self._pending.pop(call_id, None)
        if pending is not None and not pending.future.done():
            if isinstance(outcome, GgufdError):
                pending.future.set_exception(outcome)
            else:
                pending.future.set_result(outcome)
        self._watch_next()

    def _died(self, generation: int, code: int, stderr_tail: str) -> None:
        if generation != self._generation:
            return
        self._child = None
        was_ready, self._is_ready = self._is_ready, False
        self._cancel_timers()
        reason = _reason(code, stderr_tail, timed_out=self._timed_out)
        self._fail_start(self._start_failure(code, reason))
        if self._is_stopping:
            return
        logger.warning("The text process ended (%s) and is started again.", reason)
        if was_ready and self._pending:
            self._blame(code)
            self._spawn()
        else:
            self._back_off(reason)

    def _start_failure(self, code: int, reason: str) -> str:
        if code == -signal.SIGABRT and not self._timed_out:
            # llama.cpp's own way to say so, about tokens that are missing or of a type that does not belong there.
            return f"{self._params.model.path}: llama.cpp cannot use its vocabulary ({reason}); convert the model again"
        return f"The text process could not start: {reason}"

    def _blame(self, code: int) -> None:
        """The call that was being worked on is refused; but a process killed from outside gets it once more."""
        pending = next(iter(self._pending.values()))
        pending.deaths += 1
        if self._timed_out and pending.call_id != self._overrun_id:
            # The late one was answered after all while its process was being killed.
            return
        if code == _KILL_CODE and not self._timed_out and pending.deaths < 2:
            return
        what = f"it took longer than {self._limit_s(pending):g} s" if self._timed_out else "it stopped the process"
        if pending.method == _GRAMMAR:
            message = f"This grammar or schema could not be compiled: {what}. Make it smaller or simpler."
        else:
            message = f"This text could not be processed: {what}. Send it shorter, or without very long unbroken runs."
        self._settle(pending.call_id, InvalidRequest(message))

    def _back_off(self, reason: str) -> None:
        self._failures += 1
        # A worker that could say why it does not start said it already.
        self._last_failure = self._last_failure or reason
        if self._failures >= _GIVE_UP_AFTER:
            self._fail_all(EngineDown(f"The text process does not start: {self._last_failure}"))
        delay = min(_MAX_BACKOFF_S, self._backoff_s * 2.0**self._failures)
        self._restart = self._loop.call_later(delay, self._spawn)

    def _fail_all(self, error: GgufdError) -> None:
        for pending in self._pending.values():
            if not pending.future.done():
                pending.future.set_exception(error)
        self._pending.clear()

    # --- the time limit -----------------------------------------------------------------------------------------

    def _watch_next(self) -> None:
        if self._pending and self._is_ready:
            self._begin_watch()
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _limit_s(self, pending: _PendingCall) -> float:
        """How long the process may take for this call: grammars are quick, or they are hostile."""
        return min(self._call_timeout_s, GRAMMAR_TIMEOUT_S) if pending.method == _GRAMMAR else self._call_timeout_s

    def _begin_watch(self) -> None:
        """The process turns to the oldest call."""
        assert self._child is not None
        self._begun_s, self._begun_cpu_s = self._loop.time(), self._child.cpu_s
        self._watch(self._limit_s(next(iter(self._pending.values()))))

    def _left_s(self) -> float:
        """How much longer the process may take for the call that it works on."""
        assert self._child is not None
        limit_s = self._limit_s(next(iter(self._pending.values())))
        had_s = self._loop.time() - self._begun_s
        return min(limit_s - (self._child.cpu_s - self._begun_cpu_s), _PATIENCE * limit_s - had_s)

    def _watch(self, timeout_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(timeout_s, self._overrun)

    def _overrun(self) -> None:
        if self._is_ready and self._pending and (left_s := self._left_s()) > 0:
            self._watch(max(left_s, _CPU_TICK_S))
        else:
            self._give_up()

    def _give_up(self) -> None:
        self._timed_out = True
        self._overrun_id = next(iter(self._pending), None)
        if self._child is not None:
            self._child.kill()

    def _cancel_timers(self) -> None:
        for timer in (self._timer, self._restart):
            if timer is not None:
                timer.cancel()
        self._timer = self._restart = None


class InprocTextClient(TextCalls):
    """The same calls on a thread of this process: for tests. Nothing survives a crash, nothing is timed."""

    def __init__(self, model: TextModel) -> None:
        self._model = model
        self.info = model.info
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="text")

    async def start(self) -> TextInfo:
        return self.info

    async def stop(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: getattr(self._model, method)(*args, **kwargs))


def pickled(message: object) -> bytes:
    """A message as bytes. Raises InvalidRequest where it is nested too deeply for that."""
    # Here and not on the child's writer thread, so that the one who asked for it hears what is wrong with it.
    try:
        return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    except RecursionError:
        raise InvalidRequest("The request is nested too deeply.") from None


def _reason(code: int, stderr_tail: str, *, timed_out: bool) -> str:
    if timed_out:
        return "it took too long"
    last_line = stderr_tail.splitlines()[-1] if stderr_tail else ""
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{how}: {last_line}" if last_line else how
