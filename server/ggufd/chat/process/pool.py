"""Pool of text processes: one as a rule, a second and a third as soon as slow calls make others wait.

A text may keep a process busy for seconds (200,000 emoji). Each process works on one call at a time, the rest waits
here, in order, for whoever is free first. Only a call with much text, or with a grammar in it, can be slow: once there
are two processes, one is for the others alone, so that however many slow texts come, they wait for each other.

Results are cached, so a call that comes again waits for no process. Not where the cache could tell somebody what
another one sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from ggufd.chat.process.calls import TextCalls
from ggufd.chat.process.client import TextClient, not_running, pickled, shutting_down
from ggufd.chat.process.memo import Memo
from ggufd.chat.prompt import ChatPrompt, TextInfo
from ggufd.errors import GgufdError

logger = logging.getLogger(__name__)

GROW_AFTER_S = 0.25
"""So long a call waits before another process is started, which then stays."""

_MOST = 3
_SHORT_BYTES = 64 << 10
"""As much text takes a tenth of a second at most, whatever the vocabulary."""


class _Waiting(NamedTuple):
    """Waiting call: the process that it will get, and whether it may be slow."""

    process: asyncio.Future[TextClient]
    may_be_slow: bool


class TextPool(TextCalls):
    """Pool of at most three processes, made by `new_client`, but for the `first` where that is there.

    `grow_after_s` is how long a call waits before another process is started. `is_shared` says whether all callers may
    profit from what one of them sent.
    """

    def __init__(
        self,
        new_client: Callable[[], TextClient],
        *,
        first: TextClient | None = None,
        grow_after_s: float = GROW_AFTER_S,
        is_shared: Callable[[], bool] = lambda: True,
    ) -> None:
        self._new_client = new_client
        self._grow_after_s = grow_after_s
        self._clients = [first or new_client()]
        self._free: list[TextClient] = []
        self._waiting: deque[_Waiting] = deque()
        self._n_slow = 0
        self._growth_timer: asyncio.TimerHandle | None = None
        self._starting: TextClient | None = None
        self._growing: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[Any]] = set()
        self._memo = Memo()
        self._is_shared = is_shared
        self._is_stopped = True

    async def start(self) -> TextInfo:
        self.info = await self._clients[0].start()
        self._free = [self._clients[0]]
        self._is_stopped = False
        return self.info

    async def stop(self) -> None:
        self._is_stopped = True
        if self._growth_timer is not None:
            self._growth_timer.cancel()
        if self._growing is not None:
            self._growing.cancel()
        for waiting in self._waiting:
            if not waiting.process.done():
                waiting.process.set_exception(shutting_down())
        self._waiting.clear()
        clients = self._clients if self._starting is None else [*self._clients, self._starting]
        await asyncio.gather(*(client.stop() for client in clients))
        await asyncio.gather(*self._calls, return_exceptions=True)

    @property
    def pids(self) -> list[int]:
        """Process ids of those that answer now."""
        return [client.pid for client in self._clients if client.pid is not None]

    @property
    def is_running(self) -> bool:
        return bool(self.pids)

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if self._is_stopped:
            raise not_running()
        asked = pickled((method, args, kwargs))
        is_kept = self._is_shared() and self._is_lasting(method)
        if is_kept and (known := self._memo.get(asked)) is not None:
            return known
        result = await self._ask(_may_be_slow(method, args, len(asked)), method, *args, **kwargs)
        if is_kept:
            self._memo.put(asked, result)
        return result

    def _is_lasting(self, method: str) -> bool:
        """Whether the same call would give the same again, and is likely to come."""
        return method in ("encode", "check_grammar") or (method == "render" and not self.info.tells_time)

    async def _ask(self, may_be_slow: bool, method: str, *args: Any, **kwargs: Any) -> Any:
        client = await self._acquire(may_be_slow)
        call = asyncio.create_task(client._call(method, *args, **kwargs))
        self._calls.add(call)
        call.add_done_callback(lambda ended: self._end(client, ended, may_be_slow))
        # A caller that leaves does not free the process: it goes on with the call.
        return await asyncio.shield(call)

    async def _acquire(self, may_be_slow: bool) -> TextClient:
        if self._free and self._may_begin(may_be_slow):
            self._n_slow += may_be_slow
            return self._free.pop()
        waiting = _Waiting(asyncio.get_running_loop().create_future(), may_be_slow)
        self._waiting.append(waiting)
        self._schedule_growth()
        try:
            return await waiting.process
        except asyncio.CancelledError:
            if waiting.process.done() and not waiting.process.cancelled():
                self._release(waiting.process.result(), may_be_slow)
            raise

    def _may_begin(self, may_be_slow: bool) -> bool:
        """Whether such a call may take a free process: one is kept from the slow, where there are several."""
        return not may_be_slow or self._n_slow < max(1, len(self._clients) - 1)

    def _end(self, client: TextClient, call: asyncio.Task[Any], may_be_slow: bool) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            # Mark the exception as retrieved: the caller has it, unless it left.
            call.exception()
        self._release(client, may_be_slow)

    def _release(self, client: TextClient, was_slow: bool = False) -> None:
        """Give a process back, and free ones to those calls that have waited longest and still do."""
        self._n_slow -= was_slow
        self._free.append(client)
        while self._free and (waiting := self._next()) is not None:
            self._n_slow += waiting.may_be_slow
            waiting.process.set_result(self._free.pop())

    def _next(self) -> _Waiting | None:
        """Take the first waiting call that may begin out of the queue."""
        self._waiting = deque(one for one in self._waiting if not one.process.done())
        found = next((one for one in self._waiting if self._may_begin(one.may_be_slow)), None)
        if found is not None:
            self._waiting.remove(found)
        return found

    def _schedule_growth(self) -> None:
        """Start the timer of the first waiting call that another process would help."""
        first = next((one for one in self._waiting if self._would_help(one)), None)
        if first is not None and self._growth_timer is None:
            loop = asyncio.get_running_loop()
            self._growth_timer = loop.call_later(self._grow_after_s, self._grow_if_needed, first)

    def _would_help(self, waiting: _Waiting) -> bool:
        """Whether another process would help: a second one helps any call, a third one those kept from the second."""
        n_most = _MOST if waiting.may_be_slow else 2
        return not waiting.process.done() and self._starting is None and len(self._clients) < n_most

    def _grow_if_needed(self, first: _Waiting) -> None:
        self._growth_timer = None
        if self._would_help(first):
            # Known at once: calls that come before the task runs must not start one more.
            self._starting = self._new_client()
            self._starting.expect(self.info)
            self._growing = asyncio.get_running_loop().create_task(self._grow(self._starting))
        else:
            self._schedule_growth()

    async def _grow(self, another: TextClient) -> None:
        logger.info("a slow text makes others wait: another text process is started")
        try:
            await another.start()
        except GgufdError as error:
            # Its model was good when the first one started; without another all goes on as before.
            logger.warning("no other text process: %s", error.message)
            self._starting = None
            await another.stop()
            return
        self._starting = None
        self._clients.append(another)
        self._release(another)
        self._schedule_growth()


def _may_be_slow(method: str, args: tuple[Any, ...], n_bytes: int) -> bool:
    """Whether a call has much text, or a grammar to compile: tools are one."""
    has_grammar = method == "check_grammar" or any(isinstance(one, ChatPrompt) and one.tools for one in args)
    return has_grammar or n_bytes > _SHORT_BYTES
