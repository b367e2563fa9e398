"""Batches over HTTP and the fake engine: every line is told once, whatever ends meanwhile, and to nobody else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ggufd.api.batches import worker as worker_module
from ggufd.api.batches.worker import BatchWorker
from ggufd.batches.files import StorageLimits
from ggufd.batches.records import BatchLine, BatchRecord, LineResult
from ggufd.batches.store import BatchStore
from ggufd.errors import EngineDown, Unavailable
from ggufd.keys.ring import Key, KeyRing, Role, digest_of
from tests.support.fakes.api_client import Api, error_of, running
from tests.support.fakes.fake_engine import FakeEngine, FakeState
from tests.support.limits import ANSWER_S

CHAT = "/v1/chat/completions"
ALICE, BOB, ROOT = ({"x-api-key": key} for key in "abr")


def keys() -> KeyRing:
    return KeyRing([Key("alice", digest_of("a")), Key("bob", digest_of("b")), Key("root", digest_of("r"), Role.ADMIN)])


def line(custom_id: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    body = body or {"messages": [{"role": "user", "content": f"say {custom_id}"}]}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def jsonl(*lines: Any) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


class Batches:
    """A client of files and batches."""

    def __init__(self, api: Api, worker: BatchWorker, store: BatchStore) -> None:
        self.api, self.http, self.worker, self.store = api, api.http, worker, store

    async def upload(self, content: bytes, headers: dict[str, str] | None = None) -> str:
        files = {"file": ("in.jsonl", content)}
        response = await self.http.post("/v1/files", files=files, data={"purpose": "batch"}, headers=headers)
        assert response.status_code == 200, response.text
        file_id: str = response.json()["id"]
        return file_id

    async def create(
        self, *lines: Any, endpoint: str = CHAT, headers: dict[str, str] | None = None, **more: Any
    ) -> str:
        asked = {"input_file_id": await self.upload(jsonl(*lines), headers), "endpoint": endpoint}
        response = await self.http.post(
            "/v1/batches", json={"completion_window": "24h", **asked, **more}, headers=headers
        )
        assert response.status_code == 200, response.text
        batch_id: str = response.json()["id"]
        return batch_id

    async def get(self, batch_id: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
        found: dict[str, Any] = (await self.http.get(f"/v1/batches/{batch_id}", headers=headers)).json()
        return found

    async def until(
        self, batch_id: str, is_so: Callable[[dict[str, Any]], bool], headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        for _ in range(1000):
            if is_so(found := await self.get(batch_id, headers)):
                return found
            await asyncio.sleep(0.01)
        raise AssertionError(found)

    async def done(
        self, batch_id: str, status: str = "completed", headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        return await self.until(batch_id, lambda one: one["status"] == status, headers)

    async def lines_of(self, file_id: str | None, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """Lines of a result by their custom_id; each is there once."""
        if file_id is None:
            return {}
        response = await self.http.get(f"/v1/files/{file_id}/content", headers=headers)
        lines = [json.loads(text) for text in response.text.splitlines()]
        found = {one["custom_id"]: one for one in lines}
        assert len(found) == len(lines)
        return found


async def until(holds: Callable[[], bool]) -> None:
    """Wait for it, on a busy machine too."""
    async with asyncio.timeout(ANSWER_S):
        while not holds():  # noqa: ASYNC110 - nothing tells it
            await asyncio.sleep(0.01)


async def open_requests(engine: FakeEngine, n: int = 1) -> None:
    """Wait until so many lines are being computed."""
    await until(lambda: len(engine.open) >= n)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_POLL_S", 0.01)
    monkeypatch.setattr(worker_module, "_RETRY_S", 0.02)


@asynccontextmanager
async def batching(folder: Path, engine: FakeEngine | None = None, **settings: Any) -> AsyncIterator[Batches]:
    async with running(engine, batch_dir=folder / "batches", **settings) as api:
        transport = api.http._transport
        assert isinstance(transport, httpx.ASGITransport)
        state = transport.app.state  # type: ignore[attr-defined]
        worker, store = state.batch_worker, state.services.batches
        worker.start()
        try:
            yield Batches(api, worker, store)
        finally:
            await worker.stop()
            store.check_integrity()
            store.close()


async def test_lines_are_answered_as_requests_are_and_for_nobody_else(tmp_path: Path) -> None:
    async with batching(tmp_path, FakeEngine(["Hello"])) as batches:
        batch_id = await batches.create(line("a"), line("b", messages="x"), line("c"), metadata={"why": "test"})
        done = await batches.done(batch_id)
        live = await batches.api.ok(CHAT, messages=[{"role": "user", "content": "say a"}])
        output = await batches.lines_of(done["output_file_id"])
        errors = await batches.lines_of(done["error_file_id"])
    assert done["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert (done["object"], done["endpoint"], done["errors"]) == ("batch", CHAT, None)
    assert (done["completion_window"], done["metadata"]) == ("24h", {"why": "test"})
    assert done["expires_at"] == done["created_at"] + 24 * 3600
    assert done["completed_at"] >= done["finalizing_at"] >= done["in_progress_at"] >= done["created_at"]
    assert list(output) == ["a", "c"]
    one = output["a"]
    assert set(one) == {"id", "custom_id", "response", "error"}
    assert (one["response"]["status_code"], one["error"]) == (200, None)
    assert one["response"]["request_id"]
    assert one["response"]["body"]["choices"] == live["choices"]
    assert (errors["b"]["response"]["status_code"], errors["b"]["error"]) == (400, None)
    assert errors["b"]["response"]["body"]["error"]["param"] == "messages"
    requests = batches.api.engine.requests
    assert [request.principal.is_background for request in requests] == [True, True, False]


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/embeddings", {"input": "x"}),
    ],
)
async def test_every_endpoint_is_served(tmp_path: Path, endpoint: str, body: dict[str, Any]) -> None:
    async with batching(tmp_path) as batches:
        batch_id = await batches.create(line("a", endpoint, **body), endpoint=endpoint)
        done = await batches.done(batch_id)
        assert done["request_counts"]["completed"] == 1, await batches.lines_of(done["error_file_id"])
        asked = [*batches.api.engine.requests, *batches.api.engine.embeds]
        assert all(one.principal.is_background for one in asked)


async def test_responses_of_lines_are_stored_only_where_that_is_asked_for(tmp_path: Path) -> None:
    path = "/v1/responses"
    async with batching(tmp_path) as batches:
        asked = [line("a", path, input="x"), line("b", path, input="x", store=True)]
        done = await batches.done(await batches.create(*asked, endpoint=path))
        output = await batches.lines_of(done["output_file_id"])
        ids = {name: one["response"]["body"]["id"] for name, one in output.items()}
        error_of(await batches.http.get(f"{path}/{ids['a']}"), 404)
        assert (await batches.http.get(f"{path}/{ids['b']}")).status_code == 200


async def test_what_aborts_a_keys_requests_aborts_no_lines(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.gate.clear()
    async with batching(tmp_path, engine) as batches:
        batch_id = await batches.create(line("a"))
        await open_requests(engine)
        response = await batches.http.post("/api/extra/abort", json={})
        assert response.json()["success"] is False
        assert engine.open
        engine.gate.set()
        done = await batches.done(batch_id)
        answer = (await batches.lines_of(done["output_file_id"]))["a"]["response"]["body"]
        assert answer["choices"][0]["finish_reason"] == "stop"


async def test_a_file_with_wrong_lines_is_refused_whole_and_says_which(tmp_path: Path) -> None:
    async with batching(tmp_path) as batches:
        content = jsonl(line("a"), line("a")) + b"{\n" + jsonl(line("d", "/v1/embeddings"))
        asked = {"input_file_id": await batches.upload(content), "endpoint": CHAT, "completion_window": "24h"}
        made = await batches.api.ok("/v1/batches", **asked)
        found = await batches.done(made["id"], "failed")
        assert [(one["line"], one["code"]) for one in found["errors"]["data"]] == [
            (2, "duplicate_custom_id"),
            (3, "invalid_json_line"),
            (4, "mismatched_endpoint"),
        ]
        assert found["failed_at"]
        assert not batches.api.engine.requests


async def test_another_key_sees_none_of_it(tmp_path: Path) -> None:
    async with batching(tmp_path, keys=keys()) as batches:
        batch_id = await batches.create(line("a"), headers=ALICE)
        done = await batches.done(batch_id, headers=ALICE)
        for other in (BOB, ROOT):
            for path in (
                f"/v1/batches/{batch_id}",
                f"/v1/files/{done['input_file_id']}",
                f"/v1/files/{done['output_file_id']}/content",
            ):
                error_of(await batches.http.get(path, headers=other), 404)
            error_of(await batches.http.post(f"/v1/batches/{batch_id}/cancel", headers=other), 404)
            error_of(await batches.http.delete(f"/v1/batches/{batch_id}", headers=other), 404)
            error_of(await batches.http.delete(f"/v1/files/{done['input_file_id']}", headers=other), 404)
            stolen = {"input_file_id": done["input_file_id"], "endpoint": CHAT, "completion_window": "24h"}
            error_of(await batches.http.post("/v1/batches", json=stolen, headers=other), 404)
            assert (await batches.http.get("/v1/batches", headers=other)).json()["data"] == []
            assert (await batches.http.get("/v1/files", headers=other)).json()["data"] == []
        assert [request.principal.name for request in batches.api.engine.requests] == ["alice"]
        error_of(await batches.http.get(f"/v1/batches/{batch_id}"), 401)


async def test_a_key_that_is_removed_stops_its_batches(tmp_path: Path) -> None:
    engine, ring = FakeEngine(), keys()
    engine.gate.clear()
    async with batching(tmp_path, engine, keys=ring) as batches:
        batch_id = await batches.create(*(line(str(n)) for n in range(20)), headers=ALICE)
        await open_requests(engine, 8)
        ring.replace([key for key in keys() if key.name != "alice"])
        n_requests = len(engine.requests)
        engine.gate.set()
        await until(lambda: not engine.open)
        await asyncio.sleep(0.1)
        assert len(engine.requests) == n_requests
        error_of(await batches.http.get(f"/v1/batches/{batch_id}", headers=ALICE), 401)
        ring.replace(keys())
        done = await batches.done(batch_id, headers=ALICE)
        assert done["request_counts"] == {"total": 20, "completed": 20, "failed": 0}, "and goes on where it was"


async def test_keys_take_turns(tmp_path: Path) -> None:
    async with batching(tmp_path, keys=keys()) as batches:
        await batches.worker.stop()
        long = await batches.create(*(line(str(n)) for n in range(100)), headers=ALICE)
        short = await batches.create(line("x"), line("y"), headers=BOB)
        batches.worker.start()
        await batches.done(short, headers=BOB)
        assert [one.principal.name for one in batches.api.engine.requests[:40]].count("bob") == 2
        await batches.done(long, headers=ALICE)


async def test_a_cancelled_batch_keeps_what_it_has_and_tells_the_rest(tmp_path: Path) -> None:
    engine = FakeEngine()
    async with batching(tmp_path, engine) as batches:
        batch_id = await batches.create(*(line(str(n)) for n in range(30)))
        await batches.until(batch_id, lambda one: one["request_counts"]["completed"] >= 8)
        engine.gate.clear()
        await open_requests(engine)
        response = await batches.http.post(f"/v1/batches/{batch_id}/cancel")
        assert response.json()["status"] in ("cancelling", "cancelled")
        done = await batches.done(batch_id, "cancelled")
        assert not engine.open, "what ran was aborted"
        output = await batches.lines_of(done["output_file_id"])
        errors = await batches.lines_of(done["error_file_id"])
        assert output.keys() | errors.keys() == {str(n) for n in range(30)}
        assert not output.keys() & errors.keys()
        assert {one["error"]["code"] for one in errors.values()} == {"batch_cancelled"}
        assert done["request_counts"] == {"total": 30, "completed": len(output), "failed": len(errors)}
        error_of(await batches.http.post(f"/v1/batches/{batch_id}/cancel"), 400)
        assert (await batches.http.delete(f"/v1/batches/{batch_id}")).json()["deleted"]
        error_of(await batches.http.get(f"/v1/batches/{batch_id}"), 404)


async def test_a_batch_whose_window_is_over_tells_what_was_not_computed(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.gate.clear()
    async with batching(tmp_path, engine) as batches:
        batch_id = await batches.create(*(line(str(n)) for n in range(3)), completion_window="1h")
        await open_requests(engine)
        start = batches.store.now()
        batches.store.now = lambda: start + 3601
        done = await batches.done(batch_id, "expired")
        errors = await batches.lines_of(done["error_file_id"])
        assert {one["error"]["code"] for one in errors.values()} == {"batch_expired"}
        assert (done["output_file_id"], done["request_counts"]["failed"]) == (None, 3)


async def test_a_line_that_the_engine_failed_on_is_computed_again_but_not_for_ever(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.error = EngineDown("the engine ended while it computed this")
    async with batching(tmp_path, engine) as batches:
        poison = await batches.create(line("a"))
        done = await batches.done(poison)
        errors = await batches.lines_of(done["error_file_id"])
        assert errors["a"]["response"]["body"]["error"]["code"] == "engine_down"
        assert len(engine.requests) == 3
        batch_id = await batches.create(line("b"))
        await asyncio.sleep(0.01)
        engine.error = None
        assert (await batches.done(batch_id))["request_counts"]["completed"] == 1


async def test_without_an_engine_no_line_begins(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.trouble = "the engine is restarting"
    async with batching(tmp_path, engine) as batches:
        batch_id = await batches.create(line("a"))
        await batches.done(batch_id, "in_progress")
        await asyncio.sleep(0.1)
        assert not engine.requests
        engine.trouble = ""
        await batches.done(batch_id)


async def test_an_engine_that_leaves_costs_a_line_no_attempt(tmp_path: Path) -> None:
    """Another model is loaded, for example."""
    engine = FakeEngine()
    engine.error = EngineDown("another model is being loaded")
    async with batching(tmp_path, engine) as batches:
        for n_requests in range(5):
            engine.gate.clear()
            if not n_requests:
                batch_id = await batches.create(line("a"))
            await open_requests(engine)
            engine.state = FakeState.DRAINING
            engine.gate.set()
            await until(lambda: not engine.open)
            engine.gate.clear()
            engine.state = FakeState.READY
        await open_requests(engine)
        engine.error = None
        engine.gate.set()
        done = await batches.done(batch_id)
        assert done["request_counts"] == {"total": 1, "completed": 1, "failed": 0}


async def test_a_fault_of_the_server_is_told_with_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a fault")

    async with batching(tmp_path) as batches:
        monkeypatch.setattr(batches.api.engine, "submit", broken)
        done = await batches.done(await batches.create(line("a"), line("b")))
        errors = await batches.lines_of(done["error_file_id"])
        assert [one["response"]["status_code"] for one in errors.values()] == [500, 500]


async def test_what_a_full_disk_does_not_take_is_held_and_nothing_new_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ggufd")
    tell, is_full = BatchStore.tell, False

    def limited(self: BatchStore, record: BatchRecord, one: BatchLine, result: LineResult) -> None:
        if is_full:
            raise Unavailable("database or disk is full")
        tell(self, record, one, result)

    monkeypatch.setattr(BatchStore, "tell", limited)
    engine = FakeEngine()
    async with batching(tmp_path, engine) as batches:
        is_full = True
        batch_id = await batches.create(*(line(str(n)) for n in range(40)))
        await until(lambda: any("pause" in one for one in caplog.messages) and not engine.open)
        # What had begun before the first result was refused goes on to its end.
        for _ in range(20):
            n_requests = len(engine.requests)
            await asyncio.sleep(0.2)
            if n_requests == len(engine.requests):
                break
        assert 0 < n_requests == len(engine.requests) <= 16
        is_full = False
        done = await batches.done(batch_id)
        assert done["request_counts"]["completed"] == len(engine.requests) == 40, "none was computed twice"
    said = [one.message for one in caplog.records if "batches" in one.message]
    assert len([one for one in said if "pause" in one]) == 1
    assert any("go on" in one for one in said)


async def test_what_ends_with_the_server_is_computed_by_the_next_one(tmp_path: Path) -> None:
    engine = FakeEngine()
    async with batching(tmp_path, engine) as batches:
        batch_id = await batches.create(*(line(str(n)) for n in range(30)))
        await batches.until(batch_id, lambda one: one["request_counts"]["completed"] >= 5)
        engine.gate.clear()
        await open_requests(engine)
    assert not engine.open
    first = len(engine.requests)
    async with batching(tmp_path) as batches:
        done = await batches.done(batch_id)
        assert done["request_counts"] == {"total": 30, "completed": 30, "failed": 0}
        assert len(await batches.lines_of(done["output_file_id"])) == 30
        assert first + len(batches.api.engine.requests) <= 30 + 16, "only what ran was computed again"


async def test_the_queue_tells_of_batches_and_not_of_their_lines(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.gate.clear()
    async with batching(tmp_path, engine, keys=keys()) as batches:
        batch_id = await batches.create(*(line(str(n)) for n in range(20)), headers=ALICE)
        await open_requests(engine)
        for headers, n_seen in ((ALICE, 1), (BOB, 0), (ROOT, 1)):
            found = (await batches.http.get("/v1/queue", headers=headers)).json()
            assert (found["data"], found["running"], found["waiting"]) == ([], 0, 0)
            assert len(found["batches"]) == n_seen
        seen = found["batches"][0]
        assert (seen["id"], seen["key"], seen["lines"], seen["lines_left"]) == (batch_id, "alice", 20, 20)
        text = (await batches.http.get("/metrics", headers=ROOT)).text
        assert 'ggufd_batch_lines{state="waiting"} 20.0' in text
        engine.gate.set()
        await batches.done(batch_id, headers=ALICE)
        text = (await batches.http.get("/metrics", headers=ROOT)).text
        assert 'ggufd_requests_total{key="alice",reason="stop"} 20.0' in text
        assert "ggufd_time_to_first_token_seconds_count 0.0" in text, "nobody waited"


async def test_files_are_listed_in_pages(tmp_path: Path) -> None:
    async with batching(tmp_path) as batches:
        ids = [await batches.upload(jsonl(line(str(n)))) for n in range(5)]
        found = (await batches.http.get("/v1/files")).json()
        assert [one["id"] for one in found["data"]] == ids[::-1]
        assert found["has_more"] is False
        asked = {"limit": "2", "order": "asc", "after": ids[1], "purpose": "batch"}
        found = (await batches.http.get("/v1/files", params=asked)).json()
        assert ([one["id"] for one in found["data"]], found["has_more"]) == (ids[2:4], True)
        assert (found["first_id"], found["last_id"]) == (ids[2], ids[3])
        assert (await batches.http.get("/v1/files", params={"purpose": "batch_output"})).json()["data"] == []
        for query in ({"limit": "0"}, {"order": "up"}, {"limit": "x"}):
            error_of(await batches.http.get("/v1/files", params=query), 400)
        error_of(await batches.http.get("/v1/files", params={"after": "no"}), 404)
        assert (await batches.http.delete(f"/v1/files/{ids[0]}")).json() == {
            "id": ids[0],
            "object": "file",
            "deleted": True,
        }
        error_of(await batches.http.get(f"/v1/files/{ids[0]}"), 404)


async def test_a_file_comes_back_as_it_was_sent(tmp_path: Path) -> None:
    content = b"\x00\xff" * 600_000
    async with batching(tmp_path) as batches:
        file_id = await batches.upload(content)
        response = await batches.http.get(f"/v1/files/{file_id}/content")
        assert response.content == content
        assert int(response.headers["content-length"]) == len(content)
        found = (await batches.http.get(f"/v1/files/{file_id}")).json()
        assert (found["bytes"], found["filename"], found["purpose"]) == (len(content), "in.jsonl", "batch")
        assert found["expires_at"] == found["created_at"] + 30 * 24 * 3600


@pytest.mark.parametrize(
    ("data", "files", "said"),
    [
        ({}, {"file": b"x"}, "'purpose': is required"),
        ({"purpose": "fine-tune"}, {"file": b"x"}, "expected 'batch', got 'fine-tune'"),
        ({"purpose": "batch"}, {"other": b"x"}, "is longer than|'file': is required"),
        ({"purpose": "batch", "expires_after[seconds]": "5"}, {"file": b"x"}, "expected 3600 to"),
        ({"purpose": "batch", "expires_after[anchor]": "x"}, {"file": b"x"}, "created_at"),
    ],
)
async def test_a_wrong_form_is_a_bad_request_and_leaves_nothing(
    tmp_path: Path, data: dict[str, str], files: dict[str, bytes], said: str
) -> None:
    async with batching(tmp_path) as batches:
        error = error_of(await batches.http.post("/v1/files", data=data, files=files), 400)
        assert any(one in error["message"] for one in said.split("|"))
        assert (await batches.http.get("/v1/files")).json()["data"] == []
    assert list((tmp_path / "batches" / "files").iterdir()) == []


async def test_what_is_no_form_or_too_large_is_refused(tmp_path: Path) -> None:
    limits = StorageLimits(max_file_bytes=1 << 20)
    async with batching(tmp_path, batch_limits=limits) as batches:
        error_of(await batches.http.post("/v1/files", json={}), 400)
        large = await batches.http.post("/v1/files", data={"purpose": "batch"}, files={"file": b"x" * (2 << 20)})
        assert "--batch-max-file-mib" in error_of(large, 413)["message"]
    assert list((tmp_path / "batches" / "files").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"endpoint": "/v1/models"}, "endpoint"),
        ({"completion_window": "25x"}, "completion_window"),
        ({"completion_window": "8d"}, "completion_window"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
        ({"input_file_id": 5}, "input_file_id"),
    ],
    ids=str,
)
async def test_a_wrong_order_is_a_bad_request(tmp_path: Path, changes: dict[str, Any], param: str) -> None:
    async with batching(tmp_path) as batches:
        asked = {"input_file_id": await batches.upload(b""), "endpoint": CHAT, "completion_window": "24h"}
        assert (await batches.api.refused("/v1/batches", asked | changes))["param"] == param


async def test_results_are_no_input(tmp_path: Path) -> None:
    async with batching(tmp_path) as batches:
        done = await batches.done(await batches.create(line("a")))
        asked = {"input_file_id": done["output_file_id"], "endpoint": CHAT, "completion_window": "24h"}
        assert "'batch_output'" in (await batches.api.refused("/v1/batches", asked))["message"]


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches", "/v1/files/x/content", "/v1/batches/x"])
async def test_without_a_folder_every_route_names_the_setting(path: str) -> None:
    async with running() as api:
        error = error_of(await api.http.get(path), 400)
        assert "--batch-dir" in error["message"]
        assert (await api.http.get("/v1/queue")).json()["batches"] == []
