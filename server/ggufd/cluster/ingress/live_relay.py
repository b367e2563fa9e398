"""`GET /v1/live` of the cluster: the streams of all replicas, read as long as somebody looks, told as one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response, StreamingResponse

from ggufd.api.http.json_response import dumps
from ggufd.cluster.ingress.asked import AskedRequest
from ggufd.cluster.ingress.everyone import Everyone, Told
from ggufd.cluster.merging.live import LiveMerge
from ggufd.cluster.relay.failures import none_left
from ggufd.cluster.relay.headers import to_client
from ggufd.cluster.relay.upstream import ReplicaLost, losing
from ggufd.cluster.replicas import Replica

logger = logging.getLogger(__name__)

_INTERVAL_S = 1.0
_FIRST_S = 3.0
"""So long the first messages are waited for: a replica that is busy tells later."""

_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class LiveRelay:
    """One viewer: a task for each replica, and what they told."""

    def __init__(self, everyone: Everyone, asked: AskedRequest) -> None:
        self._everyone = everyone
        self._asked = asked
        self._merge = LiveMerge()
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._refused: Told | None = None
        self._news = asyncio.Event()
        self._ended: bytes | None = None

    async def response(self) -> Response:
        """The stream; or what a replica says to who may not look. Raises NoReplica."""
        try:
            await self._follow()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FIRST_S):
                    while len(self._merge) < len(self._reading) and self._refused is None and self._reading:
                        await self._news.wait()
                        self._news.clear()
            if self._refused is not None:
                return self._refused.as_response()
            if not len(self._merge):
                raise none_left(len(self._reading))
        except BaseException:
            await self._stop()
            raise
        return StreamingResponse(self._events(), headers=_HEADERS, media_type="text/event-stream")

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            while True:
                if self._ended is not None:
                    yield self._ended
                    return
                yield b"data: " + dumps(self._merge.message()) + b"\n\n" if len(self._merge) else b": ping\n\n"
                await asyncio.sleep(_INTERVAL_S)
                await self._follow()
        finally:
            await self._stop()

    async def _follow(self) -> None:
        """Begin to read those that are not read."""
        replicas = {replica.id: replica for replica in await self._everyone.all()}
        for replica_id, task in [*self._reading.items()]:
            if task.done() or replica_id not in replicas:
                task.cancel()
                del self._reading[replica_id]
        for replica_id, replica in replicas.items():
            if replica_id not in self._reading:
                self._reading[replica_id] = asyncio.get_running_loop().create_task(self._read(replica))

    async def _read(self, replica: Replica) -> None:
        try:
            async with self._everyone.open(replica, self._asked) as answer:
                with losing(replica):
                    if answer.status != 200:
                        body = await answer.read()
                        self._refused = Told(replica, answer.status, to_client(answer.raw_headers), body)
                        return
                    held = b""
                    async for data in answer.content.iter_any():
                        *events, held = (held + data).split(b"\n\n")
                        for event in events:
                            self._take(replica, event)
        except ReplicaLost as lost:
            logger.info("the live view lost a replica: %s", lost)
        finally:
            self._merge.drop(replica.id, "does not answer any more")
            self._news.set()

    def _take(self, replica: Replica, event: bytes) -> None:
        data = b"".join(line[5:] for line in event.split(b"\n") if line.startswith(b"data:"))
        if not data:
            return
        message: Any = json.loads(data)
        if "error" in message:
            # The viewer's key has ended.
            self._ended = event + b"\n\n"
        else:
            self._merge.take(replica.id, message)
        self._news.set()

    async def _stop(self) -> None:
        tasks = [*self._reading.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
