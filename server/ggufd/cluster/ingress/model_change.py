"""Change of the model in all replicas, one after the other, so that the rest serves meanwhile.

It ends at the first that does not change: its model stays, and the answer names those that have changed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response, StreamingResponse

from ggufd.api.answer.sse import event_bytes
from ggufd.api.http.body import parse_json
from ggufd.api.http.error_shape import openai_body
from ggufd.api.http.json_response import json_response
from ggufd.cluster.ingress.asked import AskedRequest
from ggufd.cluster.ingress.everyone import Everyone, Told
from ggufd.cluster.relay.failures import none_left
from ggufd.cluster.replicas import Replica
from ggufd.errors import InvalidRequest

_PING = b": ping\n\n"
_PING_S = 1.0
"""What is refused is refused within this time, and its answer has that status; then the stream begins."""


class ModelChange:
    """One `POST /v1/models/load` for all replicas."""

    def __init__(self, everyone: Everyone, asked: AskedRequest) -> None:
        self._everyone = everyone
        self._asked = asked
        self._body = _json(asked)
        self._done: list[Told] = []

    async def response(self) -> Response:
        """The answer: a stream of steps, unless `stream` is false. Raises NoReplica."""
        replicas = await self._everyone.all()
        if not replicas:
            raise none_left(0)
        if isinstance(self._body, dict) and self._body.get("stream", True) is True:
            return await self._streamed(replicas)
        for replica in replicas:
            if (failed := await self._change(replica)) is not None:
                return failed
        return self._done[-1].as_response()

    async def _streamed(self, replicas: Any) -> Response:
        changing = asyncio.ensure_future(self._change(replicas[0]))
        await asyncio.wait((changing,), timeout=_PING_S)
        if changing.done() and (failed := changing.result()) is not None:
            return failed
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._steps(replicas, changing), headers=headers, media_type="text/event-stream")

    async def _steps(self, replicas: Any, changing: asyncio.Future[Response | None]) -> AsyncIterator[bytes]:
        for place, replica in enumerate(replicas):
            if place:
                changing = asyncio.ensure_future(self._change(replica))
            yield event_bytes({"status": f"loading in {replica.id}", "progress": round(place / len(replicas), 3)})
            while not (await asyncio.wait((changing,), timeout=_PING_S))[0]:
                yield _PING
            if (failed := changing.result()) is not None:
                yield b"data: " + bytes(failed.body) + b"\n\n"
                return
        yield event_bytes({"status": "ready", "progress": 1.0, "model": self._done[-1].json})

    async def _change(self, replica: Replica) -> Response | None:
        """Change the model of one; what went wrong if anything did."""
        body = json.dumps({**self._body, "stream": False}).encode() if isinstance(self._body, dict) else None
        told = await self._everyone.ask_one(replica, self._asked, patience_s=None, body=body)
        if told is not None and told.is_well:
            self._done.append(told)
            return None
        return self._failure(replica, told)

    def _failure(self, replica: Replica, told: Told | None) -> Response:
        if told is not None and not self._done:
            return told.as_response()
        said = "It is gone." if told is None else f"It said: {told.body.decode('utf-8', 'replace')[:500]}"
        names = ", ".join(one.replica.id for one in self._done)
        changed = f"These have it: {names}." if names else "No other was asked."
        message = f"The replica '{replica.id}' did not change its model. {said} {changed}"
        return json_response(
            openai_body(message, status=502, kind="server_error", param=None, code="partly_changed"), status=502
        )


def _json(asked: AskedRequest) -> Any:
    """The body; None of what is no JSON object, which a replica refuses."""
    try:
        return parse_json(asked.body) if isinstance(asked.body, bytes) else None
    except InvalidRequest:
        return None
