"""`deterministic` on every generating route, and the receipt that its answer carries, over the fakes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import pytest

from ggufd.engine.messages.provenance import FileDigest
from tests.api.test_api_tools import PARIS, WEATHER, says
from tests.support.fakes.api_client import running
from tests.support.fakes.fake_engine import PROVENANCE, FakeEngine

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]
ANSWER = b"Hello world"

ROUTES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": HELLO},
    "/v1/completions": {"prompt": "Once"},
    "/v1/responses": {"input": "Hello", "store": False},
    "/v1/messages": {"messages": HELLO, "max_tokens": 50},
    "/completion": {"prompt": "Once"},
    "/api/generate": {"prompt": "Once", "raw": True},
    "/api/chat": {"messages": HELLO},
    "/api/v1/generate": {"prompt": "Once"},
}


def digest(tokens: bytes) -> str:
    return hashlib.sha256(b"".join(token.to_bytes(4, "little") for token in tokens)).hexdigest()


def find(answer: Any) -> list[dict[str, Any]]:
    """Every receipt, wherever it stands."""
    if isinstance(answer, list):
        return [one for item in answer for one in find(item)]
    if not isinstance(answer, dict):
        return []
    own = [answer["receipt"]] if "receipt" in answer else []
    return own + [one for name, item in answer.items() if name != "receipt" for one in find(item)]


@pytest.mark.parametrize(("path", "body"), ROUTES.items())
async def test_every_generating_route_takes_it_and_gives_one_receipt(path: str, body: dict[str, Any]) -> None:
    sent = {**body, "stream": False, "deterministic": True, "seed": 7}
    async with running(FakeEngine([ANSWER])) as api:
        (receipt,) = find(await api.ok(path, **sent))
        (request,) = api.engine.requests
    assert request.is_deterministic
    assert request.sampling.seed == 7
    assert receipt["version"] == 1
    assert receipt["request"] == {"path": path, "body": sent}
    assert receipt["prompts"] == [{"n_tokens": len(request.prompt), "digest": digest(bytes(request.prompt))}]
    (choice,) = receipt["choices"]
    assert choice == {
        "index": 0,
        "seed": 7,
        "finish_reason": "stop",
        "n_tokens": len(ANSWER),
        "digest": digest(ANSWER),
        "tokens": list(ANSWER),
    }


@pytest.mark.parametrize(("path", "body"), ROUTES.items())
async def test_nobody_else_gets_one(path: str, body: dict[str, Any]) -> None:
    async with running() as api:
        for more in ({}, {"deterministic": False}):
            assert not find(await api.ok(path, **body, **more, stream=False))
        assert not any(request.is_deterministic for request in api.engine.requests)


STREAMS = [path for path in ROUTES if path != "/api/v1/generate"] + ["/api/extra/generate/stream"]


@pytest.mark.parametrize("path", STREAMS)
async def test_a_stream_has_it_in_one_of_its_last_events(path: str) -> None:
    body = ROUTES.get(path, {"prompt": "Once"})
    async with running(FakeEngine([ANSWER])) as api:
        response = await api.post(path, {**body, "stream": True, "deterministic": True})
    is_ndjson = path.startswith("/api/") and "extra" not in path
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if is_ndjson or line.startswith("data")]
    events = [json.loads(line) for line in lines if line not in ("", "[DONE]")]
    (receipt,) = find(events)
    assert find(events[-2:]) == [receipt]
    assert receipt["choices"][0]["tokens"] == list(ANSWER)


async def test_choices_share_a_receipt_and_a_seed() -> None:
    async with running(FakeEngine([b"one", b"two"])) as api:
        answer = await api.ok("/v1/completions", prompt=["Once", "Twice"], n=2, deterministic=True, seed=7)
        events = await api.events("/v1/completions", prompt=["Once", "Twice"], n=2, deterministic=True, seed=7)
    (receipt,) = find(answer)
    assert [(one["index"], one["seed"], bytes(one["tokens"])) for one in receipt["choices"]] == [
        (0, 7, b"one"),
        (1, 8, b"two"),
        (2, 7, b"one"),
        (3, 8, b"two"),
    ]
    assert [prompt["n_tokens"] for prompt in receipt["prompts"]] == [4, 5]
    (streamed,) = find(events)
    assert streamed["choices"] == receipt["choices"]


@pytest.mark.parametrize("sent", [{}, {"seed": -1}, {"sampler_seed": -1}])
async def test_a_seed_is_drawn_and_told_where_none_is_sent(sent: dict[str, int]) -> None:
    async with running() as api:
        (receipt,) = find(await api.ok("/v1/completions", prompt=["a", "b"], deterministic=True, **sent))
        seeds = {request.sampling.seed for request in api.engine.requests}
        (again,) = find(await api.ok("/v1/completions", prompt="a", deterministic=True, **sent))
    (seed,) = seeds
    assert receipt["request"]["body"] == {"prompt": ["a", "b"], "deterministic": True, "seed": seed}
    assert again["request"]["body"]["seed"] != seed


async def test_a_name_that_is_spelled_with_escapes_has_a_receipt_too() -> None:
    raw = b'{"prompt": "a", "d\\u0065terministic": true, "seed": 3}'
    async with running() as api:
        response = await api.http.post("/v1/completions", content=raw)
    (receipt,) = find(response.json())
    assert receipt["request"]["body"] == {"prompt": "a", "deterministic": True, "seed": 3}


async def test_ollamas_options_may_hold_it() -> None:
    async with running() as api:
        options = {"deterministic": True, "seed": 9, "temperature": 0.5}
        (receipt,) = find(await api.ok("/api/chat", messages=HELLO, stream=False, options=options))
        assert api.engine.requests[0].is_deterministic
    body = receipt["request"]["body"]
    assert body["options"] == {"deterministic": True, "temperature": 0.5}
    assert body["seed"] == 9


async def test_it_says_what_the_text_came_of() -> None:
    engine = FakeEngine()
    assert engine.ready is not None
    adapters = (FileDigest("a.gguf", 10, "d3"),)
    made = dataclasses.replace(PROVENANCE, adapters=adapters, devices=("a GPU",))
    engine.ready = dataclasses.replace(engine.ready, provenance=made)
    async with running(engine, sampling={"temperature": 0.25}) as api:
        (receipt,) = find(await api.ok(CHAT, messages=HELLO, deterministic=True, stop="x", logit_bias={"65": -1.5}))
        template = api.text.info.chat_template or ""
    made_by = receipt["computed_by"]
    assert made_by["model"] == [{"name": "fake.gguf", "bytes": 4000, "digest": "d1"}]
    assert made_by["adapters"] == [{"name": "a.gguf", "bytes": 10, "digest": "d3", "scale": 0.0}]
    assert made_by["template"] == hashlib.sha256(template.encode()).hexdigest()
    assert made_by["settings"] == {"n_ctx": 512, "n_threads": 1}
    assert (made_by["build"]["binding"], made_by["build"]["libraries"]) == ("b1", "d2")
    assert made_by["hardware"] == {"cpu": "CPU : FAKE = 1", "devices": ["a GPU"]}
    parameters = receipt["parameters"]
    assert (parameters["temperature"], parameters["stop"], parameters["logit_bias"]) == (0.25, ["x"], [[65, -1.5]])


async def test_a_banned_token_is_no_number_of_json() -> None:
    async with running() as api:
        response = await api.post("/completion", {"prompt": "a", "deterministic": True, "logit_bias": [[65, False]]})
    (receipt,) = find(response.json())
    assert receipt["parameters"]["logit_bias"] == [[65, None]]
    assert "Infinity" not in response.text


async def test_a_windowed_cache_is_refused() -> None:
    engine = FakeEngine()
    assert engine.ready is not None
    engine.ready = dataclasses.replace(engine.ready, provenance=None)
    async with running(engine) as api:
        error = await api.refused(CHAT, {"messages": HELLO, "deterministic": True})
        assert (error["param"], error["code"]) == ("deterministic", "unsupported")
        assert "--swa-full" in error["message"]
        await api.ok(CHAT, messages=HELLO)


@pytest.mark.parametrize("value", ["yes", 1, [True]])
async def test_it_is_true_or_false(value: Any) -> None:
    async with running() as api:
        assert (await api.refused(CHAT, {"messages": HELLO, "deterministic": value}))["param"] == "deterministic"


async def test_an_answer_that_is_over_early_is_computed_to_its_own_end() -> None:
    """When the engine would be told to end it depends on who else is served, and so would the tokens of the receipt."""
    body = {"messages": HELLO, "tools": [WEATHER], "max_tokens": 2000}
    async with running(says("\n".join([PARIS] * 9))) as api:
        answer = await api.ok(CHAT, **body, deterministic=True)
        assert api.engine.finished == []
        assert len(answer["choices"][0]["message"]["tool_calls"]) == 1
        await api.ok(CHAT, **body)
        assert len(api.engine.finished) == 1
    (receipt,) = find(answer)
    assert bytes(receipt["choices"][0]["tokens"]).decode() == "\n".join([PARIS] * 9)
