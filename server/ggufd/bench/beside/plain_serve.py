"""Servers behind plain Ray Serve, as who has no cluster of ours would write it: an entry, and a deployment of engines.

The entry hands each request to Serve's own handle, whose default router takes the less busy of two replicas drawn by
chance (power of two choices); what the server streams comes back through that handle. Each replica starts one
`ggufd serve` and passes requests on to it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

from ggufd.bench.measure.local import started

APP = "ggufd-bench-plain"
PREFIX = "/bench-plain"

_OF_SETTINGS = ("GGUFD_", "LLAMA_ARG_", "LLAMA_API_KEY")
_MANY = 100_000
"""The limits of the queue are each server's own, as in a cluster."""

_READY_S = 600.0


class PlainEngine:
    """One server, `settings` being those of its config.toml."""

    def __init__(self, settings: Mapping[str, Any], folder: str) -> None:
        import tomlkit

        if folder and Path(folder).is_dir():
            os.chdir(folder)
        files = tempfile.mkdtemp(prefix="ggufd-bench-")
        self._ending = contextlib.ExitStack()
        self._ending.callback(shutil.rmtree, files, ignore_errors=True)
        (Path(files) / "config.toml").write_text(tomlkit.dumps(settings), "utf-8")
        # An empty variable is an unset one.
        command = [f"{name}=" for name in os.environ if name.startswith(_OF_SETTINGS)]
        command += [sys.executable, "-P", "-m", "ggufd", "serve", "--config", f"{files}/config.toml"]
        try:
            self._server = self._ending.enter_context(
                started([*command, "--host", "127.0.0.1", "--port", "{port}"], _READY_S)
            )
        except BaseException:
            self._ending.close()
            raise
        self._session: Any = None

    async def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> AsyncIterator[Any]:
        """Status and content type, then the bytes as they come."""
        import aiohttp

        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
        url = self._server.url + target
        async with self._session.request(method, url, headers=headers, data=body or None) as response:
            yield response.status, response.headers.get("content-type", "")
            async for piece in response.content.iter_any():
                yield piece

    def __del__(self) -> None:
        self._ending.close()


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
