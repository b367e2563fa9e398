"""An HTTP client over the application and the fakes, without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from ggufd.api.app import create_app
from ggufd.api.http.record import Sink
from ggufd.api.services.services import ModelInstance, ModelSwitcher, Report
from ggufd.api.services.settings import ApiConfig
from ggufd.errors import GgufdError
from ggufd.keys.ring import Key, KeyRing, Role, digest_of
from ggufd.model_pool.pool import ModelPool
from tests.support.fakes.fake_engine import FakeEngine, FakeText
from tests.support.fakes.fake_images import FakeImages


class Api:
    """The application with its fakes, and an HTTP client that talks to it."""

    def __init__(self, engine: FakeEngine, text: FakeText, http: httpx.AsyncClient, app: FastAPI) -> None:
        self.engine, self.text, self.http, self.app = engine, text, http, app

    async def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return await self.http.post(path, json=body, **options)

    async def ok(self, path: str, **body: Any) -> Any:
        response = await self.post(path, body)
        assert response.status_code == 200, response.text
        return response.json()

    async def refused(self, path: str, body: Any, status: int = 400) -> dict[str, Any]:
        """The error object of a request that must be refused."""
        return error_of(await self.post(path, body), status)

    async def events(self, path: str, **body: Any) -> list[Any]:
        """The data of a whole stream; `[DONE]` stays a string."""
        response = await self.post(path, {"stream": True, **body})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        return parse_events(response.text)


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error object of a response in OpenAI's shape; on llama-server's routes its numbers may stand beside."""
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) - {"n_prompt_tokens", "n_ctx"} == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def parse_events(text: str) -> list[Any]:
    """What the `data:` lines of a stream hold; comments are left out."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    data = [block.removeprefix("data: ") for block in blocks]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


def ring_of(*keys: str, role: Role = Role.ADMIN) -> KeyRing:
    """A ring of these keys, named by their places."""
    return KeyRing(Key(f"key-{place}", digest_of(key), role) for place, key in enumerate(keys, 1))


class FakeModels:
    """Reports three steps, or ends with `error` after the first `error_after`."""

    def __init__(self, error: GgufdError | None = None, error_after: int = 0) -> None:
        self.error, self.error_after = error, error_after
        self.settings: dict[str, Any] = {}

    def bind(self, show: Any) -> None:
        self.show = show

    async def plan(self, settings: Any) -> dict[str, Any]:
        self.settings = settings
        if self.error is not None:
            raise self.error
        return {"file": settings["model"], "best": {"fits": True}}

    async def change(self, settings: Any, report: Report) -> None:
        self.settings = settings
        for i, (stage, share) in enumerate([("finding", None), ("loading", 0.5), ("loading", 1.0)]):
            if self.error is not None and i == self.error_after:
                raise self.error
            report(stage, share)
            await asyncio.sleep(0)


@asynccontextmanager
async def running(
    engine: FakeEngine | None = None,
    text: FakeText | None = None,
    models: ModelSwitcher | None = None,
    sinks: Sequence[Sink] = (),
    images: FakeImages | None = None,
    pool: ModelPool | None = None,
    kept: Mapping[str, ModelInstance] | None = None,
    client: tuple[str, int] = ("127.0.0.1", 123),
    **settings: Any,
) -> AsyncIterator[Api]:
    """The application over fakes."""
    engine, text = engine or FakeEngine(), text or FakeText()
    config = ApiConfig(**({"model_id": "fake-model", "build": "test"} | settings))
    app = create_app(engine, text, config, models, sinks, images, pool, kept)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=client)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield Api(engine, text, http, app)
