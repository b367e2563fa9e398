"""`python -m ggufd.bench.empty_app PORT STEP_S`: streaming with sse-starlette and nothing else, for comparison.

All streams get an event of a chunk's size every STEP_S seconds, at the same moment, as a batch of sequences does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator

import uvicorn
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

_CHUNK = {
    "id": "cmpl-0123456789abcdef01234567",
    "object": "text_completion",
    "created": 1700000000,
    "model": "a-model-with-a-name.Q4_K_M",
    "choices": [{"index": 0, "text": " word", "logprobs": None, "finish_reason": None}],
}


class Ticker:
    """Clock that wakes all waiting streams at once, every `step_s` seconds."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._next = asyncio.Event()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._step_s)
            self._next.set()
            self._next = asyncio.Event()

    async def wait(self) -> None:
        await self._next.wait()


def app(step_s: float) -> Starlette:
    """`/health`, and `/v1/completions` that streams `max_tokens` events."""
    ticker = Ticker(step_s)

    async def health(request: Request) -> Response:
        return PlainTextResponse("ok")

    async def completions(request: Request) -> Response:
        n_events = int((await request.json())["max_tokens"])

        async def events() -> AsyncIterator[str]:
            for _ in range(n_events):
                await ticker.wait()
                yield json.dumps(_CHUNK)
            yield "[DONE]"

        return EventSourceResponse(events())

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(ticker.run())
        yield
        task.cancel()

    routes = [Route("/health", health), Route("/v1/completions", completions, methods=["POST"])]
    return Starlette(routes=routes, lifespan=lifespan)


if __name__ == "__main__":
    uvicorn.run(app(float(sys.argv[2])), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
