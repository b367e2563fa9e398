"""Images while they are encoded: clients that leave, failures, requests beside others, and what is told afterwards."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ggufd.engine.messages.events import CacheDifference, CacheReport, CacheSource
from ggufd.errors import EngineFailure, QueueFull, Unsupported
from tests.support.fakes.api_client import Api, ring_of, running
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.fakes.fake_images import FakeImages, rows_of, url_of

CHAT = "/v1/chat/completions"
ASK = {"role": "user", "content": [{"type": "image_url", "image_url": url_of("red")}, {"type": "text", "text": " a"}]}
SOURCE = {"type": "base64", "media_type": "image/png", "data": "red"}

BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [ASK]},
    "/v1/responses": {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url_of("red")}]}]},
    "/v1/messages": {
        "max_tokens": 9,
        "messages": [{"role": "user", "content": [{"type": "image", "source": SOURCE}]}],
    },
    "/api/chat": {"messages": [{"role": "user", "content": "a", "images": ["red"]}]},
    "/api/generate": {"prompt": "a", "images": ["red"]},
    "/api/v1/generate": {"prompt": "a", "images": ["red"]},
    "/completion": {"prompt": {"prompt_string": "<__media__>", "multimodal_data": ["red"]}},
}
"""A request with an image in every way that generates."""


async def leave(api: Api, path: str, body: dict[str, Any]) -> None:
    """Send a request, and end the connection as soon as its image is being encoded."""
    is_gone = asyncio.Event()
    sent = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if sent:
            return sent.pop()
        await is_gone.wait()
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        pass

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(b"content-type", b"application/json"), (b"host", b"test")],
        "client": ("127.0.0.1", 1),
        "server": ("test", 80),
        "state": {},
    }
    transport: Any = api.http._transport
    serving = asyncio.create_task(transport.app(scope, receive, send))
    images: FakeImages = transport.app.state.services.images
    await images.begun.wait()
    is_gone.set()
    await asyncio.wait_for(serving, 10)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("streams", [False, True])
async def test_a_client_that_leaves_ends_the_encoding_of_its_image(path: str, streams: bool) -> None:
    images = FakeImages()
    images.gate.clear()
    async with running(images=images) as api:
        await leave(api, path, {**BODIES[path], "stream": streams})
        assert images.cancelled == ["red"]
        assert api.engine.requests == []


@pytest.mark.parametrize("stop", ["/api/extra/abort", "/v1/internal/stop-generation"])
async def test_an_abort_that_names_no_request_ends_an_encoding_too(stop: str) -> None:
    images = FakeImages()
    images.gate.clear()
    async with running(images=images) as api:
        asking = asyncio.create_task(api.post(CHAT, {"messages": [ASK], "stream": True}))
        await images.begun.wait()
        assert (await api.http.post(stop)).status_code == 200
        response = await asking
        assert (response.status_code, response.json()["error"]["code"]) == (410, "request_ended")
        assert images.cancelled == ["red"]
        assert (await api.http.post("/api/extra/abort")).json()["n_aborted"] == 0


async def test_a_key_that_is_removed_ends_its_encodings() -> None:
    images, ring = FakeImages(), ring_of("k" * 20, "o" * 20)
    images.gate.clear()
    async with running(images=images, keys=ring) as api:
        headers = {"authorization": f"Bearer {'k' * 20}"}
        asking = asyncio.create_task(api.post(CHAT, {"messages": [ASK]}, headers=headers))
        await images.begun.wait()
        ring.replace([key for key in ring if key.name != "key-1"])
        response = await asking
    assert (response.status_code, images.cancelled) == (401, ["red"])


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (EngineFailure("The image could not be encoded."), 500),
        (QueueFull("Too many images wait.", retry_after_s=3), 503),
        (Unsupported("This projector is not supported."), 400),
    ],
    ids=["fails", "full", "unsupported"],
)
async def test_a_failure_of_the_encoder_has_the_shape_of_the_api(path: str, failure: Any, status: int) -> None:
    images = FakeImages()
    images.failure = failure
    async with running(images=images) as api:
        for streams in (False, True):
            response = await api.post(path, {**BODIES[path], "stream": streams})
            assert response.status_code == status
            assert response.json()["error"]["message"] == failure.message
            assert ("retry-after" in response.headers) is (status == 503)
        assert api.engine.requests == []
    if path == "/v1/messages":
        assert response.json()["type"] == "error"


async def test_a_request_without_images_does_not_wait_for_one_that_has_some() -> None:
    images = FakeImages()
    images.gate.clear()
    async with running(images=images) as api:
        waiting = asyncio.create_task(api.ok(CHAT, messages=[ASK]))
        await images.begun.wait()
        await api.ok(CHAT, messages=[{"role": "user", "content": "a"}])
        assert not waiting.done()
        images.gate.set()
        await waiting
        assert len(api.engine.requests) == 2


async def test_an_image_is_encoded_for_who_sent_it() -> None:
    images = FakeImages()
    async with running(images=images, keys=ring_of("k" * 20), cache_sharing="per-key") as api:
        response = await api.post(CHAT, {"messages": [ASK]}, headers={"authorization": f"Bearer {'k' * 20}"})
        assert response.status_code == 200
        (request,) = api.engine.requests
    assert images.principals == [request.principal]


async def test_truncation_drops_whole_images_and_reads_each_once() -> None:
    def turn(name: str) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "input_image", "image_url": url_of(name)}]}

    images = FakeImages()
    names = [f"image{n}" for n in range(8)]
    async with running(engine=FakeEngine(n_ctx=100), images=images) as api:
        response = await api.post(
            "/v1/responses", {"input": [turn(name) for name in names], "truncation": "auto", "max_output_tokens": 4}
        )
        assert response.status_code == 200, response.text
        (request,) = api.engine.requests
    kept = names[8 - len(request.images) :]
    assert 0 < len(kept) < 8
    assert [token for token in request.prompt if token < 0] == [token for token in rows_of(*kept) if token < 0]
    assert sorted(images.measured) == sorted(names)
    assert images.encoded == kept
    assert response.headers["x-ggufd-truncated"] == f"{8 - len(kept)} messages"


async def test_a_changed_image_is_named_where_the_cache_is_explained() -> None:
    engine = FakeEngine()
    (red, *_), (blue, *_) = ([token for token in rows_of(name) if token < 0] for name in ("red", "blue"))
    first = len("user: [")
    held = tuple(token for token in rows_of("blue") if token != ord("["))
    engine.cache = CacheReport(CacheSource.SAME_SLOT, CacheDifference(first, held))
    async with running(engine, images=FakeImages()) as api:
        answer = await api.ok(CHAT, messages=[ASK], explain_cache=True)
    told = answer["cache"]["first_difference"]
    assert (told["token"], told["message"], told["role"]) == (first, 0, "user")
    assert told["image"] == f"<image {-1 - red:08x}>"
    assert told["prompt"] == f"user: [<image {-1 - red:08x}>] a\nassistant"
    assert told["cached"] == f"user: [<image {-1 - blue:08x}>]"


async def test_a_difference_outside_of_images_names_none() -> None:
    engine = FakeEngine()
    first = len("user: [") + 3 + len("] ")
    engine.cache = CacheReport(CacheSource.SAME_SLOT, CacheDifference(first, tuple(b"b")))
    async with running(engine, images=FakeImages()) as api:
        answer = await api.ok(CHAT, messages=[ASK], explain_cache=True)
    told = answer["cache"]["first_difference"]
    assert (told["image"], told["message"]) == (None, 0)
    assert told["prompt"].endswith("] a\nassistant: ")
    assert told["cached"].endswith("] b")
