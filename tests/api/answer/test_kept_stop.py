"""A stop string that stays in the text: KoboldCpp's `trim_stop`, vLLM's `include_stop_str_in_output`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.fakes.api_client import parse_events, running
from tests.support.fakes.fake_engine import FakeEngine

HELLO = [{"role": "user", "content": "Hi"}]
Read = Callable[[Any], str]


def _native_events(text: str) -> list[Any]:
    return [json.loads(block.partition("data: ")[2]) for block in text.split("\n\n") if "data: " in block]


WHOLE: dict[str, tuple[dict[str, Any], Read]] = {
    "/v1/completions": ({"prompt": "a"}, lambda answer: answer["choices"][0]["text"]),
    "/v1/chat/completions": ({"messages": HELLO}, lambda answer: answer["choices"][0]["message"]["content"]),
    "/completion": ({"prompt": "a"}, lambda answer: answer["content"]),
    "/api/v1/generate": ({"prompt": "a"}, lambda answer: answer["results"][0]["text"]),
    "/api/generate": ({"prompt": "a", "raw": True, "stream": False}, lambda answer: answer["response"]),
    "/v1/responses": ({"input": "a"}, lambda answer: answer["output"][0]["content"][0]["text"]),
}
STREAMED: dict[str, tuple[dict[str, Any], Read]] = {
    "/v1/completions": (
        {"prompt": "a", "stream": True},
        lambda text: "".join(event["choices"][0]["text"] for event in parse_events(text)[:-1]),
    ),
    "/v1/chat/completions": (
        {"messages": HELLO, "stream": True},
        lambda text: "".join(event["choices"][0]["delta"].get("content") or "" for event in parse_events(text)[:-1]),
    ),
    "/completion": (
        {"prompt": "a", "stream": True, "n_probs": 2},
        lambda text: "".join(event["content"] for event in _native_events(text)),
    ),
    "/api/extra/generate/stream": (
        {"prompt": "a"},
        lambda text: "".join(event["token"] for event in _native_events(text)),
    ),
}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, "Hello"),
        ({"trim_stop": True}, "Hello"),
        ({"trim_stop": None}, "Hello"),
        ({"include_stop_str_in_output": False}, "Hello"),
        ({"trim_stop": False}, "Hello there"),
        ({"include_stop_str_in_output": True}, "Hello there"),
    ],
    ids=str,
)
async def test_a_stop_string_stays_when_asked_for(asked: dict[str, Any], expected: str) -> None:
    async with running(FakeEngine(["Hello there, stranger"])) as api:
        for path, (body, text_of) in WHOLE.items():
            answer = await api.ok(path, **body, **asked, stop=[" there"])
            assert text_of(answer) == expected, path
        for path, (body, text_of) in STREAMED.items():
            response = await api.post(path, {**body, **asked, "stop": [" there"]})
            assert text_of(response.text) == expected, path


async def test_a_text_that_no_stop_string_ended_is_left_alone() -> None:
    async with running(FakeEngine(["Hello there"])) as api:
        answer = await api.ok("/v1/completions", prompt="a", trim_stop=False, stop=["x"])
        assert answer["choices"][0]["text"] == "Hello there"


async def test_a_switch_that_is_none_is_refused() -> None:
    async with running() as api:
        error = await api.refused("/api/v1/generate", {"prompt": "a", "trim_stop": "no"})
    assert error["param"] == "trim_stop"


async def test_special_tokens_are_shown_when_koboldcpps_switch_says_so() -> None:
    async with running() as api:
        await api.ok("/api/v1/generate", prompt="a", render_special=True)
        await api.ok("/api/v1/generate", prompt="a", render_special=False)
        assert [request.skip_special_tokens for request in api.engine.requests] == [False, True]
