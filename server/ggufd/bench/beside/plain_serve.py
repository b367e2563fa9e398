"""Servers behind plain Ray Serve, as who has no cluster of ours would write it: an entry, and a deployment of engines.

The entry hands each request to Serve's own handle, whose default router takes the less busy of two replicas drawn by
chance (power of two choices); what the server streams comes back through that handle. Each replica starts one
`ggufd serve` and passes requests on to it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from ggufd.bench.measure.client import BenchError
from ggufd.bench.measure.local import started

APP = "ggufd-bench-plain"
PREFIX = "/bench-plain"

_OF_SETTINGS = ("GGUFD_", "LLAMA_ARG_", "LLAMA_API_KEY")
_MANY = 100_000
"""The limits of the queue are each server's own, as in a cluster."""

_READY_S = 600.0

_SERVER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
os.execv(sys.executable, [sys.executable, "-P", "-m", "ggufd", "serve", *sys.argv[1:]])
"""
"""The server, which ends with whoever started it, however that ends (1 is PR_SET_PDEATHSIG)."""


class PlainEngine:
    """One server, `settings` being those of its config.toml."""

    def __init__(self, settings: Mapping[str, Any], folder: str) -> None:
        if folder and Path(folder).is_dir():
            os.chdir(folder)
        self._settings = settings
        self._is_over = threading.Event()
        self._url: Future[str] = Future()
        # The system counts the thread that started a server as its parent: this one lives as long as the server.
        self._running = threading.Thread(target=self._run, name="plain-server", daemon=True)
        self._running.start()
        self._url.result()
        self._session: Any = None

    async def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> AsyncIterator[Any]:
        """Status and content type, then the bytes as they come."""
        import aiohttp

        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
        url = self._url.result() + target
        async with self._session.request(method, url, headers=headers, data=body or None) as response:
            yield response.status, response.headers.get("content-type", "")
            async for piece in response.content.iter_any():
                yield piece

    def __del__(self) -> None:
        self._is_over.set()
        self._running.join()

    def _run(self) -> None:
        import tomlkit

        with tempfile.TemporaryDirectory(prefix="ggufd-bench-") as files:
            (Path(files) / "config.toml").write_text(tomlkit.dumps(self._settings), "utf-8")
            # An empty variable is an unset one.
            unset = [f"{name}=" for name in os.environ if name.startswith(_OF_SETTINGS)]
            given = ["--config", f"{files}/config.toml", "--host", "127.0.0.1", "--port", "{port}"]
            try:
                with started([*unset, sys.executable, "-P", "-c", _SERVER, *given], _READY_S) as server:
                    self._url.set_result(server.url)
                    self._is_over.wait()
            except (BenchError, OSError) as error:
                self._url.set_exception(error)


class PlainEntry:
    """Entry of the application, whose requests Serve takes from its proxy."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine.options(method_name="answer", stream=True)

    async def __call__(self, request: Any) -> Any:
        from starlette.responses import StreamingResponse

        target = request.scope["path"].removeprefix(PREFIX)
        headers = {name: value for name in _PASSED if (value := request.headers.get(name))}
        answer = self._engine.remote(request.method, target, headers, await request.body())
        status, content_type = await anext(answer)
        return StreamingResponse(answer, status, {"content-type": content_type})


_PASSED = ("content-type", "accept", "authorization")


@contextlib.contextmanager
def deployed(n_replicas: int, settings: Mapping[str, Any], folder: str, n_gpus: float) -> Iterator[None]:
    """Context in which that application runs on the Ray of this machine, beside what runs there."""
    from ray import serve

    engine: Any = serve.deployment(
        PlainEngine,
        name="engine",
        num_replicas=n_replicas,
        max_ongoing_requests=_MANY,
        ray_actor_options={"num_cpus": 0, "num_gpus": n_gpus},
    )
    entry: Any = serve.deployment(
        PlainEntry, name="entry", max_ongoing_requests=_MANY, ray_actor_options={"num_cpus": 0}
    )
    with _connected():
        serve.run(entry.bind(engine.bind(settings, folder)), name=APP, route_prefix=PREFIX)
    try:
        yield
    finally:
        with _connected():
            serve.delete(APP)


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Context with this process as a part of Ray, which it is not while it measures."""
    import logging

    import ray

    ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()
