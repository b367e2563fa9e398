"""The gate: what waits for a model and what does not, over every API family; rights, disconnects, timeouts, streams."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ggufd.api.pool.paths import use_of
from ggufd.keys.ring import Role
from tests.support.fakes.api_client import error_of, parse_events, ring_of
from tests.support.fakes.fake_pool import PooledApi

PASSES = {
    "/api/show": "told from the header",
    "/api/extra/abort": "names no model",
    "/api/extra/generate/check": "names no model",
    "/lora-adapters": "of the loaded model",
    "/props": "of the loaded model",
    "/slots/{slot}": "of the loaded model",
    "/v1/internal/stop-generation": "names no model",
    "/v1/batches": "its lines wait, each for itself",
    "/v1/batches/{batch_id}/cancel": "needs no model",
    "/v1/files": "needs no model",
    "/v1/drain": "needs no model",
    "/v1/sleep": "of the loaded model",
    "/v1/models/load": "changes the model",
    "/v1/models/unload": "of the loaded model",
    "/v1/models/plan": "needs no model",
    "/v1/streams/lookup": "needs no model",
}

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/chat/completions": CHAT,
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {**CHAT, "max_tokens": 8},
    "/completion": {"prompt": "Hi"},
    "/api/chat": {**CHAT, "stream": False},
    "/api/generate": {"prompt": "Hi", "stream": False},
    "/v1/embeddings": {"input": "Hi"},
    "/tokenize": {"content": "Hi"},
}


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def posted_paths(app: Any) -> set[str]:
    """Paths of all routes that are posted to, with the prefixes that their routers are included under."""
    found = set()
    for included in app.routes:
        if (router := getattr(included, "original_router", None)) is None:
            continue
        for route in router.routes:
            if "POST" in route.methods:
                found.add(included.include_context.prefix + route.path)
    return found


async def test_every_route_that_is_posted_to_either_waits_or_needs_no_model() -> None:
    async with PooledApi().running() as api:
        paths = posted_paths(api.app)
    assert len(paths) > 50
    passing = {path for path in paths if use_of(path) is None}
    assert {path if path in PASSES else f"/v1{path}" for path in passing} == PASSES.keys()


@pytest.mark.parametrize("path", BODIES)
async def test_a_request_gets_its_answer_from_the_model_that_it_names(path: str) -> None:
    pooled = PooledApi()
    async with pooled.running() as api:
        await api.ok(path, **BODIES[path], model="small")
        assert pooled.loads == []
        answer = await api.ok(path, **BODIES[path], model="large")
        assert pooled.loads == ["large"]
        assert answer.get("model", "large") == "large"
        await api.ok(path, **BODIES[path], model="gpt-4")
        await api.ok(path, **BODIES[path])
        assert pooled.loads == ["large"]


async def test_what_is_wrong_with_a_request_is_said_by_its_route() -> None:
    async with PooledApi().running(max_body_bytes=2000) as api:
        response = await api.http.post("/v1/chat/completions", content=b'{"model": "large"')
        assert "not valid JSON" in error_of(response, 400)["message"]
        response = await api.http.post("/v1/chat/completions", content=b'{"model": "%s"}' % (b"x" * 3000))
        error_of(response, 413)
        assert (await api.refused("/v1/completions", {"prompt": 5, "model": "small"}))["param"] == "prompt"


class TestRights:
    async def test_admins_keys_may_and_users_keys_may_not(self) -> None:
        pooled = PooledApi()
        for role, status in ((Role.USER, 403), (Role.ADMIN, 200)):
            async with pooled.running(keys=ring_of("secret", role=role)) as api:
                headers = {"Authorization": "Bearer secret"}
                response = await api.http.post(
                    "/v1/completions", json={"prompt": "x", "model": "large"}, headers=headers
                )
                assert response.status_code == status
        assert pooled.loads == ["large"]

    @pytest.mark.parametrize(("path", "code"), [("/v1/chat/completions", "model_not_loaded"), ("/v1/messages", None)])
    async def test_the_refusal_says_who_may_in_the_shape_of_the_api(self, path: str, code: str | None) -> None:
        async with PooledApi().running(keys=ring_of("secret", role=Role.USER)) as api:
            headers = {"Authorization": "Bearer secret"}
            response = await api.http.post(path, json={**BODIES[path], "model": "large"}, headers=headers)
            error = response.json()["error"]
        assert response.status_code == 403
        assert "'large' is not loaded, and this key may not have it loaded" in error["message"]
        assert error.get("code") == code
        assert error["type"] == "permission_error"

    @pytest.mark.parametrize("names", [("large",), ("*",), ("vectors", "large")])
    async def test_users_keys_may_have_the_models_of_a_list(self, names: tuple[str, ...]) -> None:
        pooled = PooledApi()
        async with pooled.running(keys=ring_of("secret", role=Role.USER), swap_models=names) as api:
            headers = {"Authorization": "Bearer secret"}
            await api.http.post("/v1/completions", json={"prompt": "x", "model": "large"}, headers=headers)
        assert pooled.loads == ["large"]

    async def test_without_keys_this_machine_may_and_another_may_not(self) -> None:
        for client, settings, may in (
            (("127.0.0.1", 1), {}, True),
            (("::1", 1), {}, True),
            (("192.168.1.7", 1), {}, False),
            (("127.0.0.1", 1), {"listens_beyond": True}, False),
            (("192.168.1.7", 1), {"swap_for": "everybody"}, True),
            (("127.0.0.1", 1), {"swap_for": "nobody"}, False),
            (("127.0.0.1", 1), {"swap_for": "nobody", "swap_models": ("*",)}, False),
        ):
            pooled = PooledApi()
            async with pooled.running(client=client, **settings) as api:
                response = await api.post("/v1/completions", {"prompt": "x", "model": "large"})
            assert (response.status_code == 200) == may, (client, settings)
            assert pooled.loads == (["large"] if may else [])

    async def test_a_proxy_on_this_machine_is_no_leave_for_whoever_is_behind_it(self) -> None:
        pooled = PooledApi()
        async with pooled.running() as api:
            headers = {"X-Forwarded-For": "203.0.113.9"}
            response = await api.http.post("/v1/completions", json={"prompt": "x", "model": "large"}, headers=headers)
        assert error_of(response, 403)["code"] == "model_not_loaded"
        assert pooled.loads == []


class TestWaiting:
    async def test_a_running_answer_ends_before_its_model_goes(self) -> None:
        pooled = PooledApi()
        async with pooled.running() as api:
            api.engine.gate.clear()
            first = asyncio.create_task(api.ok("/v1/completions", prompt="x", model="small"))
            await settled()
            second = asyncio.create_task(api.ok("/v1/completions", prompt="x", model="large"))
            await settled()
            assert pooled.loads == []
            api.engine.gate.set()
            assert (await first)["model"] == "small"
            assert (await second)["model"] == "large"

    async def test_requests_of_the_loaded_model_wait_for_a_swap_that_is_under_way(self) -> None:
        pooled = PooledApi()
        pooled.gate.clear()
        async with pooled.running() as api:
            tasks = [asyncio.create_task(api.ok("/v1/completions", prompt="x", model=name)) for name in ("large", "x")]
            await settled()
            assert not any(task.done() for task in tasks)
            pooled.gate.set()
            assert [answer["model"] for answer in await asyncio.gather(*tasks)] == ["large", "large"]

    async def test_its_reason_reaches_who_waited_for_a_model_that_does_not_load(self) -> None:
        pooled = PooledApi()
        pooled.broken.add("large")
        async with pooled.running() as api:
            response = await api.post("/v1/completions", {"prompt": "x", "model": "large"})
            error = error_of(response, 503)
            assert error["code"] == "model_load_failed"
            assert "its tensors are missing" in error["message"]
            assert int(response.headers["retry-after"]) > 0
            assert (await api.ok("/v1/completions", prompt="x"))["model"] == "small"

    async def test_a_timeout_that_cannot_be_kept_is_refused_at_once(self) -> None:
        pooled = PooledApi(swap_after_s=1000.0)
        async with pooled.running() as api:
            await api.ok("/v1/completions", prompt="x")
            api.engine.gate.clear()
            first = asyncio.create_task(api.post("/v1/completions", {"prompt": "x"}))
            await settled()
            body = {"prompt": "x", "model": "large", "timeout": 2}
            error = await api.refused("/v1/completions", body, 503)
            assert error["code"] == "queue_timeout"
            assert error["param"] == "timeout"
            api.engine.gate.set()
            await first

    async def test_the_wait_is_part_of_the_timeout(self) -> None:
        pooled = PooledApi()
        pooled.gate.clear()
        async with pooled.running() as api:
            body = {"prompt": "x", "model": "large", "timeout": 30}
            asked = asyncio.create_task(api.ok("/v1/completions", **body))
            await settled()
            await asyncio.sleep(0.05)
            pooled.gate.set()
            await asked
            timeout_s = api.engine.requests[-1].timeout_s
        assert timeout_s is not None
        assert timeout_s < 29.96

    async def test_a_drained_server_loads_no_other_model(self) -> None:
        pooled = PooledApi()
        async with pooled.running() as api:
            await api.ok("/v1/drain")
            error = await api.refused("/v1/completions", {"prompt": "x", "model": "large"}, 503)
        assert "drain" in error["message"]
        assert pooled.loads == []

    async def test_while_the_first_model_is_loaded_no_other_is(self) -> None:
        pooled = PooledApi()
        async with pooled.running() as api:
            ready, api.engine.ready = api.engine.ready, None
            for name in ("large", "small"):
                error = await api.refused("/v1/completions", {"prompt": "x", "model": name}, 503)
                assert error["code"] == "engine_down"
            assert pooled.loads == []
            api.engine.ready = ready
            await api.ok("/v1/completions", prompt="x", model="large")

    async def test_a_key_that_is_revoked_ends_the_waiting(self) -> None:
        pooled = PooledApi()
        pooled.gate.clear()
        ring = ring_of("secret")
        async with pooled.running(keys=ring) as api:
            headers = {"Authorization": "Bearer secret"}
            body = {"prompt": "x", "model": "large"}
            asked = asyncio.create_task(api.http.post("/v1/completions", json=body, headers=headers))
            await settled()
            ring.replace([])
            error = error_of(await asked, 401)
        assert "removed or replaced" in error["message"]


class TestDisconnect:
    async def test_who_leaves_waits_no_more_and_causes_no_swap(self) -> None:
        pooled = PooledApi()
        async with pooled.running() as api:
            api.engine.gate.clear()
            first = asyncio.create_task(api.ok("/v1/completions", prompt="x"))
            await settled()
            sent: list[Any] = []
            body = json.dumps({"prompt": "x", "model": "large"}).encode()
            messages = asyncio.Queue[dict[str, Any]]()
            messages.put_nowait({"type": "http.request", "body": body})

            async def send(message: Any) -> None:
                sent.append(message)

            call = asyncio.create_task(api.app(scope_of("/v1/completions"), messages.get, send))  # type: ignore[arg-type]
            await settled()
            assert [turn.model for turn in pooled.pool.waiting] == ["large"]
            messages.put_nowait({"type": "http.disconnect"})
            await asyncio.wait_for(call, 10)
            assert pooled.pool.waiting == []
            assert sent[0]["status"] == 499
            api.engine.gate.set()
            await first
            await settled()
        assert pooled.loads == []


def scope_of(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }


class TestStreams:
    async def test_one_that_wants_to_know_is_told_of_its_wait(self) -> None:
        pooled = PooledApi()
        pooled.gate.clear()
        async with pooled.running() as api:
            body = {"prompt": "x", "model": "large", "stream": True, "report_queue": True}
            asked = asyncio.create_task(api.post("/v1/completions", body))
            await settled()
            pooled.gate.set()
            response = await asked
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.text.startswith(": queue position=1 eta_s=")
        assert " waiting for model large, " in response.text.splitlines()[0]
        events = parse_events(response.text)
        assert events[0]["model"] == "large"
        assert events[-1] == "[DONE]"

    @pytest.mark.parametrize(
        ("path", "event"),
        [("/v1/completions", ""), ("/v1/messages", "event: error\n"), ("/v1/responses", "event: error\n")],
    )
    async def test_one_that_was_begun_ends_with_the_error(self, path: str, event: str) -> None:
        pooled = PooledApi()
        pooled.gate.clear()
        pooled.broken.add("large")
        async with pooled.running() as api:
            body = {**BODIES[path], "model": "large", "stream": True, "report_queue": True}
            asked = asyncio.create_task(api.post(path, body))
            await settled()
            pooled.gate.set()
            response = await asked
        assert response.status_code == 200
        last = response.text.rstrip("\n").split("\n\n")[-1]
        assert last.startswith(f"{event}data: ")
        assert "its tensors are missing" in last

    async def test_without_that_wish_a_refusal_has_its_status(self) -> None:
        pooled = PooledApi()
        pooled.broken.add("large")
        async with pooled.running() as api:
            body = {"prompt": "x", "model": "large", "stream": True}
            assert (await api.refused("/v1/completions", body, 503))["code"] == "model_load_failed"
