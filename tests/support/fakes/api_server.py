"""The application behind a real uvicorn on a free port of the loopback, on a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from ggufd.api.app import create_app
from ggufd.api.http.connections import ConnectionGuard, ConnectionLimits
from ggufd.api.services.settings import ApiConfig
from tests.support.fakes.fake_engine import FakeEngine, FakeText
from tests.support.limits import ANSWER_S

TICK_S = 0.002
"""How often to look whether something has come true."""


class Served:
    """Where it listens, and its engine, which the test may turn while the server runs."""

    def __init__(self, engine: FakeEngine, port: int, loop: asyncio.AbstractEventLoop, guard: ConnectionGuard) -> None:
        self.engine, self.port, self._loop, self.guard = engine, port, loop, guard
        self.url = f"http://127.0.0.1:{port}"

    def in_loop(self, action: Callable[[], None]) -> None:
        """Do something on the server's event loop."""
        self._loop.call_soon_threadsafe(action)


class QuickServer(uvicorn.Server):
    """uvicorn that ends at once when `ended` is set: it looks for its own end, and its connections', at 0.1 s each."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ended = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.ended.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """The end of the connections, which have as long for it as uvicorn would give them, and tell nobody of it."""
        for listener in (*self.servers, *(sockets or ())):
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110
                    await asyncio.sleep(TICK_S)
        except TimeoutError:
            for task in self.server_state.tasks:
                task.cancel()


@contextmanager
def serving(
    engine: FakeEngine | None = None,
    limits: ConnectionLimits | None = None,
    *,
    has_infill: bool = False,
    **settings: object,
) -> Iterator[Served]:
    """A running server; it is gone when the block ends."""
    engine = engine or FakeEngine()
    config = ApiConfig(**({"model_id": "fake-model", "ping_s": 0.05} | settings))  # type: ignore[arg-type]
    app = create_app(engine, FakeText(has_infill=has_infill), config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # Small, so that a client that reads nothing is noticed by its first kilobytes.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        port = listener.getsockname()[1]
        guard = ConnectionGuard(limits or ConnectionLimits())
        options = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=2, **guard.options()
        )
        server = QuickServer(options)
        loops: list[asyncio.AbstractEventLoop] = []

        async def serve() -> None:
            loops.append(asyncio.get_running_loop())
            await server.serve([listener])

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        wait_until(lambda: server.started)
        try:
            yield Served(engine, port, loops[0], guard)
        finally:
            loops[0].call_soon_threadsafe(server.ended.set)
            thread.join(ANSWER_S)


def wait_until(is_true: Callable[[], bool], timeout_s: float = ANSWER_S) -> None:
    """Returns when `is_true` is; AssertionError when it takes too long."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(TICK_S)
