"""Text processes: one as a rule, a second one as soon as a slow call makes others wait.

A text may keep a process busy for seconds (a hostile template, 200,000 emoji). Each process works on one call at a
time, the rest waits here, in order, for whoever is free first. Knows nothing of what the calls do.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from server.chat.client import TextCalls, TextClient
from server.chat.prompt import TextInfo
from server.errors import EngineDown, GgufdError

logger = logging.getLogger(__name__)

PATIENCE_S = 0.25
"""So long a call waits for the first process before a second one is started, which then stays."""


class TextPool(TextCalls):
    """At most two processes, made by `new_client`. `patience_s` is how long a call waits before there is a second."""

    def __init__(self, new_client: Callable[[], TextClient], *, patience_s: float = PATIENCE_S) -> None:
        self._new_client = new_client
        self._patience_s = patience_s
        self._clients = [new_client()]
        self._free: list[TextClient] = []
        self._waiting: deque[asyncio.Future[TextClient]] = deque()
        self._impatience: asyncio.TimerHandle | None = None
        self._growing: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[Any]] = set()
        self._is_stopped = True

    async def start(self) -> TextInfo:
        self.info = await self._clients[0].start()
        self._free = [self._clients[0]]
        self._is_stopped = False
        return self.info

    async def stop(self) -> None:
        self._is_stopped = True
        if self._impatience is not None:
            self._impatience.cancel()
        if self._growing is not None:
            self._growing.cancel()
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(EngineDown("The server is shutting down."))
        self._waiting.clear()
        await asyncio.gather(*(client.stop() for client in self._clients))
        await asyncio.gather(*self._calls, return_exceptions=True)

    @property
    def pids(self) -> list[int]:
        """The processes that answer now."""
        return [client.pid for client in self._clients if client.pid is not None]

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if self._is_stopped:
            raise EngineDown("The text process is not running.")
        client = await self._free_client()
        call = asyncio.create_task(client._call(method, *args, **kwargs))
        self._calls.add(call)
        call.add_done_callback(lambda ended: self._end(client, ended))
        # One who leaves does not free the process: it goes on with the call.
        return await asyncio.shield(call)

    async def _free_client(self) -> TextClient:
        if self._free:
            return self._free.pop()
        waiting: asyncio.Future[TextClient] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._be_patient()
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled():
                self._hand_on(waiting.result())
            raise

    def _end(self, client: TextClient, call: asyncio.Task[Any]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            # It was heard by the caller, unless that one left: then nobody misses it.
            call.exception()
        self._hand_on(client)

    def _hand_on(self, client: TextClient) -> None:
        """A process is free: for the one who has waited longest and still does."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(client)
                return
        self._free.append(client)

    def _be_patient(self) -> None:
        if len(self._clients) == 1 and self._impatience is None:
            first = self._waiting[0]
            self._impatience = asyncio.get_running_loop().call_later(self._patience_s, self._lose_patience, first)

    def _lose_patience(self, first: asyncio.Future[TextClient]) -> None:
        self._impatience = None
        if not first.done():
            # In the list at once: those who come before the task runs must not be impatient too.
            second = self._new_client()
            self._clients.append(second)
            self._growing = asyncio.get_running_loop().create_task(self._grow(second))
        elif self._waiting:
            self._be_patient()

    async def _grow(self, second: TextClient) -> None:
        logger.info("a slow text makes others wait: a second text process is started")
        try:
            await second.start()
        except GgufdError as error:
            # Its model was good when the first one started; without the second all goes on as before.
            logger.warning("no second text process: %s", error.message)
            self._clients.remove(second)
            await second.stop()
            return
        self._hand_on(second)
