"""A key that is removed or replaced ends what is under way with it, on every route and in its shape; nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ggufd.api.services.caller import Caller
from ggufd.api.services.revocation import Revocations
from ggufd.api.services.services import Report
from ggufd.engine.client.stream import RequestStream
from ggufd.engine.messages.events import Finish, FinishReason, Output, Usage
from ggufd.engine.messages.requests import EngineRequest
from ggufd.engine.messages.sampling import SamplingParams
from ggufd.errors import GgufdError, Unauthorized
from ggufd.keys.principal import NOBODY, Principal
from ggufd.keys.ring import Key, KeyRing, Limits, Role, digest_of
from tests.support.fakes.api_client import Api, FakeModels, running
from tests.support.fakes.fake_engine import FakeEngine, FakeText
from tests.support.limits import ANSWER_S

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
SAID = "was removed or replaced while the request was under way"
ALICE, BOB = {"x-api-key": "a"}, {"x-api-key": "b"}

Events = list[tuple[str, Any]]


def events_of(text: str) -> Events:
    """Names and data of server-sent events; comments are left out."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    lines = [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]
    return [(line.get("event", ""), json.loads(line["data"])) for line in lines]


def openai_error(text: str) -> dict[str, Any]:
    """The error that ends a stream in OpenAI's shape; llama.cpp's clients and KoboldCpp's read the same."""
    *before, (name, last) = events_of(text)
    assert before
    assert not any("error" in event for _, event in before)
    assert (name, set(last)) == ("", {"error"})
    assert (last["error"]["type"], last["error"]["code"]) == ("authentication_error", "invalid_api_key")
    error: dict[str, Any] = last["error"]
    return error


def responses_error(text: str) -> dict[str, Any]:
    """`response.failed` with the whole object, then `error`."""
    *_, (failed_name, failed), (name, last) = events_of(text)
    assert (failed_name, failed["response"]["status"]) == ("response.failed", "failed")
    assert (name, last["code"]) == ("error", "invalid_api_key")
    assert failed["response"]["error"]["message"] == last["message"]
    return dict(last)


def anthropic_error(text: str) -> dict[str, Any]:
    *_, (name, last) = events_of(text)
    assert (name, last["type"], last["error"]["type"]) == ("error", "error", "authentication_error")
    return dict(last["error"])


def ollama_error(text: str) -> dict[str, Any]:
    """A last line with a text and the error's code."""
    *before, last = [json.loads(line) for line in text.splitlines()]
    assert all(line["done"] is False for line in before)
    assert last.keys() == {"error", "code"}
    return {"message": last["error"]}


STREAMS: list[tuple[str, dict[str, Any], Callable[[str], dict[str, Any]]]] = [
    ("/v1/completions", {"prompt": "a", "stream": True}, openai_error),
    ("/v1/completions", {"prompt": ["a", "b"], "n": 2, "stream": True}, openai_error),
    ("/v1/chat/completions", {**CHAT, "stream": True}, openai_error),
    ("/v1/responses", {"input": "a", "stream": True}, responses_error),
    ("/v1/messages", {**CHAT, "max_tokens": 99_999, "stream": True}, anthropic_error),
    ("/completion", {"prompt": "a", "stream": True}, openai_error),
    ("/infill", {"input_prefix": "a", "input_suffix": "b", "stream": True}, openai_error),
    ("/api/extra/generate/stream", {"prompt": "a", "max_length": 99_999}, openai_error),
    ("/api/generate", {"prompt": "a", "raw": True}, ollama_error),
    ("/api/chat", CHAT, ollama_error),
]

WHOLE: list[tuple[str, dict[str, Any]]] = [
    *((path, {**body, "stream": False}) for path, body, _ in STREAMS if path != "/api/extra/generate/stream"),
    ("/api/v1/generate", {"prompt": "a"}),
]


@asynccontextmanager
async def under_way(path: str, body: dict[str, Any], *, waits: bool) -> AsyncIterator[tuple[Api, KeyRing, Any]]:
    """A request with alice's key, which waits or has been told something; bob has a key too."""
    engine = FakeEngine(["x" * 10_000])
    engine.step_s = 0.001
    ring = KeyRing((Key("alice", digest_of("a")), Key("bob", digest_of("b"))))
    if waits:
        engine.gate.clear()
    async with running(engine, FakeText(has_infill=True), keys=ring) as api:
        asked = asyncio.create_task(api.post(path, body, headers=ALICE))
        async with asyncio.timeout(ANSWER_S):
            while not (engine.open if waits else engine.n_steps >= 3):
                assert not asked.done(), asked.result().text
                await asyncio.sleep(0.001)
        try:
            yield api, ring, asked
        finally:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)


def without_alice(ring: KeyRing) -> None:
    ring.replace(key for key in ring if key.name != "alice")


def another_alice(ring: KeyRing) -> None:
    ring.replace(Key("alice", digest_of("new")) if key.name == "alice" else key for key in ring)


@pytest.mark.parametrize("change", [without_alice, another_alice])
@pytest.mark.parametrize(("path", "body", "error_of"), STREAMS)
async def test_a_running_stream_ends_with_an_error_in_its_shape(
    path: str, body: dict[str, Any], error_of: Callable[[str], dict[str, Any]], change: Callable[[KeyRing], None]
) -> None:
    async with under_way(path, body, waits=False) as (api, ring, asked):
        change(ring)
        response = await asyncio.wait_for(asked, ANSWER_S)
        assert response.status_code == 200
        assert SAID in error_of(response.text)["message"]
        assert len(api.engine.aborted) == len(api.engine.requests)
        assert api.engine.open == set()


@pytest.mark.parametrize(
    ("path", "body", "waits"),
    [
        *((path, body, waits) for path, body in WHOLE for waits in (False, True)),
        ("/v1/embeddings", {"input": ["a", "b"]}, True),
    ],
)
async def test_a_whole_answer_becomes_401(path: str, body: dict[str, Any], *, waits: bool) -> None:
    async with under_way(path, body, waits=waits) as (api, ring, asked):
        without_alice(ring)
        response = await asyncio.wait_for(asked, ANSWER_S)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["type"] == "authentication_error"
        assert SAID in response.json()["error"]["message"]
        assert api.engine.open == set()
        assert api.engine.aborted


@pytest.mark.parametrize(("path", "body"), [(path, body) for path, body, _ in STREAMS])
async def test_a_stream_that_waits_leaves_the_queue(path: str, body: dict[str, Any]) -> None:
    async with under_way(path, body, waits=True) as (api, ring, asked):
        without_alice(ring)
        response = await asyncio.wait_for(asked, ANSWER_S)
        last = response.text.rstrip().splitlines()[-1]
        assert SAID in last
        assert api.engine.aborted
        assert api.engine.open == set()


async def test_every_documented_stream_is_in_the_list() -> None:
    async with running() as api:
        document = (await api.http.get("/openapi.json")).json()
    streamed = {
        path
        for path, operations in document["paths"].items()
        for operation in operations.values()
        if "text/event-stream" in operation.get("responses", {}).get("200", {}).get("content", {})
    }
    listed = {path for path, _, _ in STREAMS}
    # The last two go on with streams of the others; tests/api/streams ends those.
    assert {path.removeprefix("/v1") for path in streamed} - {path.removeprefix("/v1") for path in listed} == {
        "/models/load",
        "/live",
        "/stream",
        "/streams/{stream_id}",
    }


@pytest.mark.parametrize(
    "alice",
    [
        Key("alice", digest_of("a"), Role.ADMIN),
        Key("alice", digest_of("a"), Role.USER, Limits(weight=3.0, max_running=1, tokens_per_minute=1)),
        Key("alicia", digest_of("a")),
    ],
    ids=["role", "limits", "name"],
)
async def test_the_same_key_with_another_role_limits_or_name_goes_on(alice: Key) -> None:
    async with under_way("/v1/completions", {"prompt": "a", "stream": True}, waits=False) as (api, ring, asked):
        ring.replace([alice, *(key for key in ring if key.name == "bob")])
        await asyncio.sleep(0.1)
        assert not asked.done()
        assert api.engine.aborted == []


async def test_other_keys_are_not_touched() -> None:
    async with under_way("/v1/completions", {"prompt": "a", "stream": True}, waits=False) as (api, ring, asked):
        bobs = asyncio.create_task(api.post("/v1/completions", {"prompt": "b", "max_tokens": 100}, headers=BOB))
        async with asyncio.timeout(ANSWER_S):
            while len(api.engine.requests) < 2:  # noqa: ASYNC110 - a request has no event
                await asyncio.sleep(0)
        without_alice(ring)
        await asked
        response = await bobs
        assert response.status_code == 200
        assert response.json()["choices"][0]["text"] == "x" * 100
        assert len(api.engine.aborted) == 1


async def test_a_request_that_is_handed_over_too_late_is_refused() -> None:
    """The key was valid when the request came, and is removed before the engine has it."""
    ring = KeyRing((Key("alice", digest_of("a")),))
    async with running(keys=ring) as api:
        render = api.text.encode

        async def removed(*args: Any, **options: Any) -> list[int]:
            ring.replace(())
            return await render(*args, **options)

        api.text.encode = removed  # type: ignore[method-assign]
        response = await api.post("/v1/completions", {"prompt": "a"}, headers=ALICE)
    assert response.status_code == 401
    assert SAID in response.json()["error"]["message"]


class SlowModels(FakeModels):
    """A change that takes as long as the test, and says when it has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()

    async def change(self, settings: Any, report: Report) -> None:
        report("loading", 0.5)
        self.begun.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_who_loads_a_model_is_told_no_more_of_it(*, is_streamed: bool) -> None:
    ring = KeyRing((Key("alice", digest_of("a"), Role.ADMIN),))
    models = SlowModels()
    async with running(models=models, keys=ring) as api:
        body = {"model": "x", "stream": is_streamed}
        asked = asyncio.create_task(api.post("/v1/models/load", body, headers=ALICE))
        await asyncio.wait_for(models.begun.wait(), ANSWER_S)
        ring.replace(())
        response = await asyncio.wait_for(asked, ANSWER_S)
    if is_streamed:
        openai_error(response.text)
    else:
        assert response.status_code == 401


async def test_without_keys_nothing_ends() -> None:
    ends: list[GgufdError] = []
    with Revocations().during(Caller(NOBODY, "127.0.0.1"), ends.append):
        pass
    assert ends == []


async def test_what_is_over_is_ended_no_more() -> None:
    ring, ends = KeyRing((Key("alice", digest_of("a")),)), list[GgufdError]()
    caller = Caller(Principal("alice"), key_digest=digest_of("a").hex())
    revocations = Revocations(ring)
    with revocations.during(caller, ends.append):
        ring.replace(ring)
        assert ends == []
        ring.replace(())
        assert [type(error) for error in ends] == [Unauthorized]
    ring.replace(())
    assert len(ends) == 1


def a_stream(aborted: list[int]) -> RequestStream:
    request = EngineRequest(request_id=5, prompt=(1,), sampling=SamplingParams())
    return RequestStream(request, lambda stream: aborted.append(stream.request.request_id), lambda *_: None)


class TestRequestStream:
    async def test_what_was_not_read_is_dropped(self) -> None:
        aborted: list[int] = []
        stream = a_stream(aborted)
        stream.put(Output(5, 0, "secret", tokens=(7,)))
        stream.refuse(Unauthorized("gone"))
        with pytest.raises(Unauthorized, match="gone"):
            await stream.take()
        assert aborted == [5]

    async def test_also_of_an_answer_that_is_complete(self) -> None:
        """The client reads more slowly than the answer was made."""
        aborted: list[int] = []
        stream = a_stream(aborted)
        usage = Usage(1, 1, 0, 0.0, 0.0, 0.0)
        stream.put(Output(5, 0, "secret", tokens=(7,), finish=Finish(FinishReason.STOP, usage)))
        stream.refuse(Unauthorized("gone"))
        with pytest.raises(Unauthorized):
            await stream.take()
        assert aborted == []

    async def test_an_answer_that_was_read_to_its_end_stays_whole(self) -> None:
        stream = a_stream([])
        usage = Usage(1, 1, 0, 0.0, 0.0, 0.0)
        stream.put(Output(5, 0, "read", tokens=(7,), finish=Finish(FinishReason.STOP, usage)))
        assert len(await stream.take()) == 1
        stream.refuse(Unauthorized("gone"))
        assert await stream.take() == []

    async def test_who_waits_is_woken(self) -> None:
        stream = a_stream([])
        waiting = asyncio.create_task(stream.take())
        await asyncio.sleep(0)
        stream.refuse(Unauthorized("gone"))
        with pytest.raises(Unauthorized):
            await waiting
