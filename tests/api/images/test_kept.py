"""Images in what is kept: lines of batches, streams that outlive their client, stored responses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from tests.api.batches.test_batches import batching, line
from tests.support.fakes.api_client import running
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.fakes.fake_images import FakeImages, rows_of, url_of

CHAT = "/v1/chat/completions"


def ask(name: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url_of(name)}}]}]}


def texts(stream: str) -> list[dict[str, Any]]:
    """The events of a stream."""
    data = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: {")]
    return [json.loads(one) for one in data]


def rows(*names: str) -> list[int]:
    return [token for token in rows_of(*names) if token < 0]


async def test_a_line_of_a_batch_may_have_an_image(tmp_path: Path) -> None:
    engine, images = FakeEngine(), FakeImages()
    async with batching(tmp_path, engine, images=images) as batches:
        batch_id = await batches.create(line("good", **ask("red")), line("bad", **ask("!")))
        batch = await batches.until(batch_id, lambda found: found["status"] == "completed")
        told = (await batches.http.get(f"/v1/files/{batch['output_file_id']}/content")).text.splitlines()
        failed = (await batches.http.get(f"/v1/files/{batch['error_file_id']}/content")).text
    (result,) = map(json.loads, told)
    assert result["response"]["body"]["usage"]["prompt_tokens_details"]["image_tokens"] == len(rows("red"))
    assert "messages[0].content[0].image_url" in failed
    assert images.encoded == ["red"]
    assert [token for token in engine.requests[0].prompt if token < 0] == rows("red")


async def test_a_resumable_stream_has_its_image_once() -> None:
    images = FakeImages()
    async with running(images=images) as api:
        response = await api.post(CHAT, {**ask("red"), "stream": True, "resumable": True})
        stream_id = texts(response.text)[0]["id"]
        again = await api.http.get(f"/v1/streams/{stream_id}")
    said = [choice["delta"].get("content") or "" for event in texts(again.text) for choice in event["choices"]]
    assert "".join(said) == "Hello world"
    assert images.encoded == ["red"]


async def test_an_image_of_a_stored_response_that_cannot_be_read_any_more_is_named() -> None:
    images = FakeImages()
    part = {"type": "input_image", "image_url": url_of("red")}
    async with running(images=images) as api:
        first = await api.ok("/v1/responses", input=[{"role": "user", "content": [part]}])
        transport: Any = api.http._transport
        state = transport.app.state
        state.services = dataclasses.replace(state.services, images=None)
        error = await api.refused("/v1/responses", {"input": "more", "previous_response_id": first["id"]})
    assert error["param"].startswith("previous_response_id")
    assert "--mmproj" in error["message"]
