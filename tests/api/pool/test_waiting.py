"""Requests that wait for a model in the queue and the live view: what they say, who sees them, who may end them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from ggufd.api.live.sight import Sight
from ggufd.api.live.view import Seen
from ggufd.keys.ring import Key, KeyRing, Role, digest_of
from tests.support.fakes.api_client import Api, error_of
from tests.support.fakes.fake_pool import PooledApi

KEYS = KeyRing([Key("alice", digest_of("a")), Key("bob", digest_of("b")), Key("root", digest_of("r"), Role.ADMIN)])


@asynccontextmanager
async def waiting() -> AsyncIterator[tuple[Api, asyncio.Task[httpx.Response]]]:
    """A request of Alice's that waits for a model, during its load."""
    pooled = PooledApi()
    pooled.gate.clear()
    async with pooled.running(keys=KEYS, swap_models=("*",)) as api:
        body, headers = {"prompt": "x", "model": "large"}, {"x-api-key": "a"}
        asked = asyncio.create_task(api.http.post("/v1/completions", json=body, headers=headers))
        while not pooled.loads:  # noqa: ASYNC110 - a load has no event
            await asyncio.sleep(0)
        yield api, asked
        pooled.gate.set()
        await asked


async def queue_of(api: Api, key: str) -> dict[str, object]:
    found: dict[str, object] = (await api.http.get("/v1/queue", headers={"x-api-key": key})).json()
    return found


async def test_the_queue_says_which_model_and_how_long() -> None:
    async with waiting() as (api, _):
        found = await queue_of(api, "a")
        (one,) = found["data"]  # type: ignore[misc]
    assert (one["status"], one["position"], one["model"], one["key"]) == ("waiting", 1, "large", "alice")
    assert one["waiting_for"] == f"waiting for model large, {one['eta_s']:.0f} s"
    assert found["waiting"] == 1


async def test_others_are_told_no_more_than_that_somebody_waits() -> None:
    async with waiting() as (api, _):
        found = await queue_of(api, "b")
        assert (found["data"], found["waiting"]) == ([], 1)
        assert len((await queue_of(api, "r"))["data"]) == 1  # type: ignore[arg-type]


async def test_the_live_view_has_it_while_there_is_no_engine_to_ask() -> None:
    async with waiting() as (api, _):
        messages, services = api.app.state.live.messages, api.app.state.services
        told = json.loads(messages.update(services, Sight(False, "alice"), is_admin=False, seen=Seen()))
        (row,) = told["queue"]
        assert (row["owner"], row["model"], row["state"]) == ("alice", "large", "waiting")
        assert told["totals"]["waiting"] == 1
        assert json.loads(messages.update(services, Sight(False, "bob"), is_admin=False, seen=Seen()))["queue"] == []


async def test_its_own_key_and_an_admin_may_end_it() -> None:
    async with waiting() as (api, asked):
        (one,) = (await queue_of(api, "a"))["data"]  # type: ignore[misc]
        path = f"/v1/requests/{one['id']}"
        error_of(await api.http.delete(path, headers={"x-api-key": "b"}), 404)
        assert (await api.http.delete(path, headers={"x-api-key": "r"})).json()["ended"]
        error = error_of(await asked, 410)
        assert "ended by who runs the server" in error["message"]


async def test_probes_send_nobody_elsewhere_while_models_are_swapped() -> None:
    async with waiting() as (api, _):
        for path in ("/health", "/ready"):
            response = await api.http.get(path)
            assert (response.status_code, response.json()) == (200, {"status": "swapping"})


async def test_metrics_count_swaps_and_who_waits() -> None:
    async with waiting() as (api, asked):
        headers = {"x-api-key": "r"}
        text = (await api.http.get("/metrics", headers=headers)).text
        assert "\nggufd_model_waiting 1.0\n" in text
    assert asked.done()


async def test_metrics_count_what_was_swapped() -> None:
    async with PooledApi().running() as api:
        await api.ok("/v1/completions", prompt="x", model="large")
        assert "\nggufd_model_swaps 1.0\n" in (await api.http.get("/metrics")).text
