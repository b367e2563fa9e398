"""Lists of several models, as OpenAI's, llama-server's, Ollama's and tabbyAPI's clients read them."""

from __future__ import annotations

import asyncio

import pytest

from ggufd.keys.ring import Key, KeyRing, Role, digest_of
from tests.support.fakes.api_client import error_of
from tests.support.fakes.fake_pool import MODELS, PooledApi

NAMES = [model.name for model in MODELS]


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/v1/model/list"])
async def test_all_are_listed_with_their_state(path: str) -> None:
    pooled = PooledApi()
    async with pooled.running() as api:
        data = (await api.http.get(path)).json()["data"]
        assert [one["id"] for one in data] == NAMES
        assert [one["status"] for one in data] == [{"value": "loaded"}, {"value": "unloaded"}, {"value": "unloaded"}]
        assert data[0]["meta"]["n_ctx"] is not None
        assert data[1]["meta"]["n_params"] == 7_000_000_000
        assert data[2]["meta"] is None
        pooled.gate.clear()
        asked = asyncio.create_task(api.ok("/v1/completions", prompt="x", model="large"))
        while not pooled.loads:  # noqa: ASYNC110 - a load has no event
            await asyncio.sleep(0)
        data = (await api.http.get(path)).json()["data"]
        assert [one["status"]["value"] for one in data] == ["unloaded", "loading", "unloaded"]
        pooled.gate.set()
        await asked
        data = (await api.http.get(path)).json()["data"]
        assert [one["status"]["value"] for one in data] == ["unloaded", "loaded", "unloaded"]


async def test_one_that_could_not_be_loaded_says_why() -> None:
    pooled = PooledApi()
    pooled.broken.add("large")
    async with pooled.running() as api:
        await api.post("/v1/completions", {"prompt": "x", "model": "large"})
        status = (await api.http.get("/v1/models/large")).json()["status"]
    assert status == {
        "value": "unloaded",
        "failed": True,
        "exit_code": 1,
        "reason": "large.gguf: its tensors are missing.",
    }


async def test_one_is_found_by_any_of_its_names() -> None:
    async with PooledApi().running() as api:
        assert (await api.http.get("/v1/models/large.gguf")).json()["id"] == "large"
        assert (await api.http.get("/v1/models/fast")).json()["id"] == "small"
        error_of(await api.http.get("/v1/models/other"), 404)


async def test_the_plan_is_told_once_it_was_made() -> None:
    pooled = PooledApi()
    estimate = {"ram": {"needed": 5}, "vram": {"total": 6}, "n_gpu_layers": 7}
    pooled.pool.plans["large"] = {"best": {"fits": True, "why": "so", "slots": 4, "tokens_each": 512, **estimate}}
    async with pooled.running() as api:
        plan = (await api.http.get("/v1/models/large")).json()["plan"]
    assert plan == {
        "fits": True,
        "why": "so",
        "ram_needed": 5,
        "vram": 6,
        "n_gpu_layers": 7,
        "slots": 4,
        "tokens_each": 512,
    }


class TestOllama:
    async def test_tags_lists_all_and_ps_what_is_loaded(self) -> None:
        async with PooledApi().running() as api:
            tags = (await api.http.get("/api/tags")).json()["models"]
            assert [one["name"] for one in tags] == NAMES
            assert tags[1]["details"]["parameter_size"] == "7.0B"
            assert [one["name"] for one in (await api.http.get("/api/ps")).json()["models"]] == ["small"]

    async def test_show_tells_of_one_that_is_not_loaded(self) -> None:
        pooled = PooledApi()
        async with pooled.running() as api:
            shown = await api.ok("/api/show", model="large:latest")
            assert shown["model_info"]["llama.context_length"] == 4096
            assert shown["details"]["quantization_level"] == "Q4_K"
            assert (await api.ok("/api/show", model="small"))["template"] == "fake"
        assert pooled.loads == []

    async def test_an_empty_prompt_loads_the_model(self) -> None:
        pooled = PooledApi()
        async with pooled.running() as api:
            answer = await api.ok("/api/generate", model="large:latest")
        assert answer["done_reason"] == "load"
        assert answer["model"] == "large"
        assert pooled.loads == ["large"]


async def test_props_of_one_that_is_not_loaded_come_from_its_header_and_swap_nothing() -> None:
    pooled = PooledApi()
    async with pooled.running() as api:
        other = (await api.http.get("/props", params={"model": "large"})).json()
        assert (other["model_alias"], other["chat_template"]) == ("large", "the large one's")
        assert other["default_generation_settings"]["n_ctx"] == 4096
        own = [(await api.http.get("/props", params={"model": name})).json() for name in ("small", "gpt-4")]
        assert {one["chat_template"] for one in own} == {"fake"}
    assert pooled.loads == []


async def test_each_says_what_it_is_for_how_long_it_loads_and_whether_this_key_may_have_it_loaded() -> None:
    keys = KeyRing([Key("user", digest_of("u")), Key("root", digest_of("r"), Role.ADMIN)])
    pooled = PooledApi()
    async with pooled.running(keys=keys, swap_models=("vectors",)) as api:
        cards = {
            key: (await api.http.get("/v1/models", headers={"x-api-key": key})).json()["data"] for key in ("u", "r")
        }
    assert [one["may_load"] for one in cards["u"]] == [False, False, True]
    assert [one["may_load"] for one in cards["r"]] == [True, True, True]
    # One that was never downloaded has no header.
    assert [one["capabilities"] for one in cards["u"]] == [["completion"], ["completion"], None]
    # A start of some seconds, and a GiB a second.
    assert [one["load_s"] for one in cards["u"]] == [3.0, 4.0, 3.0]


class TestUnload:
    async def test_the_loaded_model_goes_to_sleep(self) -> None:
        async with PooledApi().running() as api:
            assert await api.ok("/models/unload", model="small") == {"success": True}
            assert api.engine.state.name == "SLEEPING"
            status = (await api.http.get("/v1/models/small")).json()["status"]
            assert status == {"value": "unloaded"}

    async def test_another_is_not_loaded(self) -> None:
        async with PooledApi().running() as api:
            assert "'large' is not loaded" in (await api.refused("/models/unload", {"model": "large"}))["message"]
            await api.refused("/models/unload", {"model": "nobody"}, 404)

    async def test_a_page_in_a_browser_cannot_send_it_unasked(self) -> None:
        async with PooledApi().running() as api:
            error_of(await api.http.post("/models/unload", content='{"model": "small"}'), 400)
