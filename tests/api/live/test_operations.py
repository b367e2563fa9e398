"""Drain, sleep and plan over HTTP: admins only, as JSON only."""

from __future__ import annotations

import pytest

from ggufd.errors import InvalidRequest
from ggufd.keys.ring import Role
from tests.support.fakes.api_client import FakeModels, error_of, ring_of, running
from tests.support.fakes.fake_engine import FakeEngine, FakeState

ROUTES = [("POST", "/v1/drain"), ("DELETE", "/v1/drain"), ("POST", "/v1/sleep"), ("POST", "/v1/models/plan")]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_a_users_key_may_not(method: str, path: str) -> None:
    async with running(models=FakeModels(), keys=ring_of("k", role=Role.USER)) as api:
        headers = {"x-api-key": "k", "content-type": "application/json"}
        answer = await api.http.request(method, path, content="{}", headers=headers)
        assert error_of(answer, 403)["code"] == "admin_key_required"
        assert api.engine.state is FakeState.READY
        assert (await api.http.request(method, path, content="{}")).status_code == 401


@pytest.mark.parametrize("path", ["/v1/drain", "/v1/sleep", "/v1/models/plan"])
async def test_a_form_of_some_page_changes_nothing(path: str) -> None:
    async with running(models=FakeModels()) as api:
        for headers in ({"content-type": "text/plain"}, {}):
            answer = await api.http.post(path, content="{}", headers=headers)
            assert "application/json" in error_of(answer, 400)["message"]
        assert api.engine.state is FakeState.READY


async def test_drain_and_back() -> None:
    async with running() as api:
        assert await api.ok("/v1/drain") == {"state": "draining", "running": 0, "waiting": 0}
        assert (await api.http.get("/health")).json()["status"] == "draining"
        answer = await api.http.delete("/v1/drain")
        assert (answer.status_code, answer.json()["state"]) == (200, "ready")
        assert (await api.http.get("/health")).status_code == 200


async def test_sleep_is_refused_while_somebody_is_served() -> None:
    async with running() as api:
        api.engine.open.add(1)
        assert error_of(await api.post("/v1/sleep", {}), 503)["code"] == "unavailable"
        api.engine.open.clear()
        assert (await api.ok("/v1/sleep"))["state"] == "sleeping"


@pytest.mark.parametrize("path", ["/v1/drain", "/v1/sleep"])
async def test_there_is_nothing_to_set(path: str) -> None:
    async with running() as api:
        assert error_of(await api.post(path, {"seconds": 3}), 400)["param"] == "seconds"
        assert error_of(await api.post(path, [1]), 400)
        assert api.engine.state is FakeState.READY


async def test_a_plan_is_made_of_what_a_change_would_take() -> None:
    models = FakeModels()
    async with running(models=models) as api:
        found = await api.ok("/v1/models/plan", model="other.gguf", ctx_size=4096, stream=True)
    assert found == {"file": "other.gguf", "best": {"fits": True}}
    assert models.settings == {"model": "other.gguf", "ctx_size": 4096}


async def test_a_model_that_cannot_be_planned_is_a_bad_request() -> None:
    async with running(models=FakeModels(InvalidRequest("no such file", param="model"))) as api:
        assert error_of(await api.post("/v1/models/plan", {"model": "x"}), 400)["message"] == "no such file"
    async with running(FakeEngine()) as api:
        assert error_of(await api.post("/v1/models/plan", {"model": "x"}), 400)["code"] == "unsupported"


async def test_the_routes_have_no_short_form() -> None:
    """`/live` is a page, and nothing is called `/drain`."""
    async with running() as api:
        for path in ("/drain", "/sleep", "/models/plan"):
            assert (await api.post(path, {})).status_code in (404, 405)
