"""A pool of three models over one fake engine: a load changes the name under which it serves."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ggufd.api.services.services import ModelInstance
from ggufd.api.services.settings import ApiConfig
from ggufd.errors import InvalidRequest
from ggufd.model_pool.catalogue import KnownModel, ModelCatalogue, ModelFacts
from ggufd.model_pool.pool import ModelPool, PoolRules
from tests.support.fakes.api_client import Api, running
from tests.support.fakes.fake_engine import FakeEngine, FakeText

FACTS = ModelFacts("llama", 7_000_000_000, 32, 4096, 4096, "Q4_K", chat_template="the large one's")
MODELS = (
    KnownModel("small", "small.gguf", ("fast",), "small.gguf", 1 << 20, FACTS, 5),
    KnownModel("large", "large.gguf", (), "large.gguf", 1 << 30, FACTS, 6),
    KnownModel("vectors", "hf:owner/vectors"),
)


class PooledApi:
    """The application over fakes, with a pool of `MODELS` of which "small" is loaded. Loads wait for `gate`.

    With `keeps_vectors` the model "vectors" stays loaded beside, on an engine of its own: `vectors`.
    """

    def __init__(self, swap_after_s: float = 0.0, max_waiting: int = 64, *, keeps_vectors: bool = False) -> None:
        self.vectors = FakeEngine()
        self.vectors.first_id = 5000
        self.keeps_vectors = keeps_vectors
        self.loads: list[str] = []
        self.broken: set[str] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        rules = PoolRules(swap_after_s, max_waiting)
        kept = ("vectors",) if keeps_vectors else ()
        self.pool = ModelPool(ModelCatalogue(MODELS), "small", self._load, rules, kept=kept)
        self.api: Api | None = None

    async def _load(self, name: str) -> None:
        assert self.api is not None
        self.loads.append(name)
        await self.gate.wait()
        if name in self.broken:
            raise InvalidRequest(f"{name}.gguf: its tensors are missing.")
        services = self.api.app.state.services
        config: ApiConfig = dataclasses.replace(services.config, model_id=name)
        self.api.app.state.services = dataclasses.replace(services, config=config)

    @asynccontextmanager
    async def running(self, **settings: Any) -> AsyncIterator[Api]:
        """The application; its loads end with it."""
        config = ApiConfig(model_id="vectors", build="test", keys=settings.get("keys"))
        beside = ModelInstance(self.vectors, FakeText(), config)
        kept = {"vectors": beside} if self.keeps_vectors else {}
        async with running(
            pool=self.pool, kept=kept, **({"model_id": "small", "model_aliases": ("fast",)} | settings)
        ) as self.api:
            try:
                yield self.api
            finally:
                self.gate.set()
                await self.pool.stop()
