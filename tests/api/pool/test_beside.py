"""A model that stays loaded beside: its requests take no part in swaps, and everything that lists models has it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ggufd.api.live.sight import Sight
from ggufd.api.live.view import Seen
from ggufd.engine.messages.events import Turn
from ggufd.engine.messages.reports import QueueEntry
from ggufd.errors import EngineDown
from ggufd.keys.principal import Principal
from ggufd.keys.ring import Key, KeyRing, Role, digest_of
from tests.support.fakes.api_client import Api, error_of
from tests.support.fakes.fake_engine import FakeState
from tests.support.fakes.fake_pool import PooledApi

KEYS = KeyRing([Key("alice", digest_of("a")), Key("root", digest_of("r"), Role.ADMIN)])


@asynccontextmanager
async def beside(**settings: Any) -> AsyncIterator[tuple[PooledApi, Api]]:
    pooled = PooledApi(keeps_vectors=True)
    async with pooled.running(**settings) as api:
        yield pooled, api


@asynccontextmanager
async def swapping(pooled: PooledApi, api: Api, **options: Any) -> AsyncIterator[None]:
    """A swap to "large" is under way."""
    pooled.gate.clear()
    asked = asyncio.create_task(api.post("/v1/completions", {"model": "large", "prompt": "x"}, **options))
    while not pooled.loads:  # noqa: ASYNC110 - a load has no event
        await asyncio.sleep(0)
    yield
    pooled.gate.set()
    assert (await asked).status_code == 200


PATHS = {
    "/v1/embeddings": {"input": "Hi"},
    "/api/embed": {"input": "Hi"},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/tokenize": {"content": "Hi"},
}


@pytest.mark.parametrize("path", PATHS)
async def test_its_requests_are_answered_during_a_swap_by_its_own_engine(path: str) -> None:
    async with beside() as (pooled, api), swapping(pooled, api):
        answer = await api.ok(path, **PATHS[path], model="vectors")
        assert answer.get("model", "vectors") == "vectors"
        assert len(pooled.vectors.requests) + len(pooled.vectors.embeds) == (0 if path == "/tokenize" else 1)
        assert pooled.loads == ["large"]
        assert api.engine.embeds == []


async def test_a_key_that_may_cause_no_swap_may_use_it() -> None:
    async with beside(keys=KEYS) as (pooled, api):
        answer = await api.post("/v1/embeddings", {"model": "vectors", "input": "x"}, headers={"x-api-key": "a"})
        assert answer.status_code == 200
        refused = await api.post("/v1/completions", {"model": "large", "prompt": "x"}, headers={"x-api-key": "a"})
        assert error_of(refused, 403)["code"] == "model_not_loaded"
        assert pooled.loads == []


async def test_other_names_mean_the_model_that_is_swapped() -> None:
    async with beside() as (pooled, api):
        for name in ("any", "gpt-4", ""):
            await api.ok("/v1/embeddings", input="x", model=name)
        assert (len(api.engine.embeds), pooled.vectors.embeds) == (3, [])


async def test_the_lists_have_it_loaded_whatever_else_is() -> None:
    async with beside() as (pooled, api):
        for name in ("small", "large"):
            await api.ok("/v1/completions", prompt="x", model=name)
            cards = {one["id"]: one for one in (await api.http.get("/v1/models")).json()["data"]}
            assert cards["vectors"]["status"] == {"value": "loaded", "keep_loaded": True}
            assert cards["vectors"]["meta"]["n_ctx"] == 512
            assert [id_ for id_, one in cards.items() if one["status"]["value"] == "loaded"] == [name, "vectors"]
            running = (await api.http.get("/api/ps")).json()["models"]
            assert [one["name"] for one in running] == [name, "vectors"]
            known = (await api.http.get("/api/tags")).json()["models"]
            assert sorted(one["name"] for one in known) == ["large", "small", "vectors"]
        async with swapping(pooled, api) if name != "large" else asyncio.timeout(5):
            pass
        assert (await api.http.get("/props?model=vectors")).json()["model_alias"] == "vectors"
        assert (await api.ok("/api/show", model="vectors"))["capabilities"]


async def test_one_that_does_not_answer_says_so_and_ends_nothing_else() -> None:
    async with beside() as (pooled, api):
        pooled.vectors.state, pooled.vectors.trouble = FakeState.FAILED, "the engine process ended unexpectedly"
        pooled.vectors.refusal = EngineDown("the engine was given up")
        card = (await api.http.get("/v1/models/vectors")).json()
        assert card["status"] == {
            "value": "unloaded",
            "keep_loaded": True,
            "failed": True,
            "reason": "the engine process ended unexpectedly",
        }
        health = await api.http.get("/health")
        assert (health.status_code, health.json()) == (200, {"status": "ok", "beside": {"failed": 1}})
        error_of(await api.post("/v1/embeddings", {"model": "vectors", "input": "x"}), 503)
        await api.ok("/v1/completions", prompt="x")
        assert 'ggufd_beside_up{model="vectors"} 0.0' in (await api.http.get("/metrics")).text


async def test_the_queue_has_the_requests_of_both_and_either_is_ended_by_its_number() -> None:
    async with beside(keys=KEYS) as (pooled, api):
        pooled.vectors.gate.clear()
        body, alice, root = {"model": "vectors", "input": "x"}, {"x-api-key": "a"}, {"x-api-key": "r"}
        asked = asyncio.create_task(api.http.post("/v1/embeddings", json=body, headers=alice))
        while not pooled.vectors.streams:  # noqa: ASYNC110 - a request of the fake has no event
            await asyncio.sleep(0)
        (number,) = pooled.vectors.streams
        alices = Principal(name="alice", person="alice", account="alice")
        pooled.vectors.queue = (QueueEntry(number, alices, 0, 1.0, 3, 0, Turn(1, 2.0)),)
        found = (await api.http.get("/v1/queue", headers=alice)).json()
        assert [(one["id"], one["model"], one["status"]) for one in found["data"]] == [(number, "vectors", "waiting")]
        assert found["waiting"] == 1
        async with swapping(pooled, api, headers=root):
            found = (await api.http.get("/v1/queue", headers=root)).json()
            assert [one["model"] for one in found["data"]] == ["vectors", "large"]
        ended = await api.http.delete(f"/v1/requests/{number}", headers=root)
        assert ended.status_code == 200, ended.text
        error_of(await asked, 410)


async def test_draining_holds_both_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async with beside() as (pooled, api):
        paused: list[str] = []
        for name, engine in (("small", api.engine), ("vectors", pooled.vectors)):
            monkeypatch.setattr(engine, "pause", lambda name=name: paused.append(name), raising=False)
            monkeypatch.setattr(engine, "resume", lambda name=name: paused.remove(name), raising=False)
        await api.ok("/v1/drain")
        assert paused == ["small", "vectors"]
        assert (await api.http.delete("/v1/drain")).status_code == 200
        assert paused == []


async def test_it_is_not_unloaded_by_hand() -> None:
    async with beside() as (_, api):
        error = await api.refused("/models/unload", {"model": "vectors"})
        assert "'vectors' stays loaded" in error["message"]


async def test_the_live_view_tells_of_it() -> None:
    async with beside() as (_, api):
        messages, services = api.app.state.live.messages, api.app.state.services
        told = json.loads(messages.update(services, Sight(False, "alice"), is_admin=False, seen=Seen()))
        assert told["server"]["beside"] == [{"model": "vectors", "state": "ready", "running": 0, "waiting": 0}]
