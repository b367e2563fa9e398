"""`POST /v1/chat/completions` over the fakes: messages, choices, log-probabilities, streams, refusals."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fakes.api_client import error_of, running
from tests.support.fakes.fake_engine import FakeEngine

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]


def texts(events: list[Any]) -> dict[int, str]:
    """The text of every choice of a stream."""
    parts: dict[int, str] = {}
    for event in events:
        for choice in event["choices"] if event != "[DONE]" else ():
            parts[choice["index"]] = parts.get(choice["index"], "") + choice["delta"].get("content", "")
    return parts


async def test_verbose_shows_the_prompt_beside_the_answer() -> None:
    messages = [{"role": "user", "content": "hi"}]
    async with running() as api:
        told = (await api.ok("/v1/chat/completions", messages=messages, verbose=True))["__verbose"]
        assert "hi" in told["prompt"]
        assert told["content"] == "Hello world"
        assert "__verbose" not in await api.ok("/v1/chat/completions", messages=messages)
    async with running(is_verbose=True) as api:
        assert "__verbose" in await api.ok("/v1/chat/completions", messages=messages)


async def test_a_chat_times_its_tokens_where_that_is_asked_for() -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "stream_options": {"include_usage": True}}
    async with running() as api:
        first, *texts, last, usage, _ = await api.events("/v1/chat/completions", **body, timings_per_token=True)
        plain = await api.events("/v1/chat/completions", **body)
    assert "timings" not in first
    assert [chunk["timings"]["predicted_n"] for chunk in texts] == [1, 2, 3, 4]
    assert usage["timings"] == last["timings"]
    assert ["timings" in chunk for chunk in plain[:-1]] == [False] * 5 + [True, True]


async def test_an_answer_has_openais_shape() -> None:
    async with running() as api:
        answer = await api.ok(PATH, messages=HELLO)
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello world", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"]["prompt_tokens"] == len("user: hi\nassistant: ")


async def test_a_stream_opens_with_the_role_and_ends_with_the_reason() -> None:
    async with running() as api:
        events = await api.events(PATH, messages=HELLO)
    assert events[0]["object"] == "chat.completion.chunk"
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events[1]["choices"] == [{"index": 0, "delta": {"content": "H"}, "logprobs": None, "finish_reason": None}]
    assert events[-2]["choices"][0]["delta"] == {}
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert events[-1] == "[DONE]"
    assert texts(events) == {0: "Hello world"}


async def test_no_tokens_reads_the_prompt_and_says_nothing() -> None:
    async with running() as api:
        answer = await api.ok(PATH, messages=HELLO, max_tokens=0)
        events = await api.events(PATH, messages=HELLO, max_tokens=0)
    (choice,) = answer["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")
    assert answer["usage"]["completion_tokens"] == 0
    assert texts(events) == {0: ""}


async def test_choices_stream_side_by_side_one_a_chunk() -> None:
    async with running(FakeEngine(["one", "second"])) as api:
        options = {"include_usage": True}
        events = await api.events(PATH, messages=HELLO, n=2, stream_options=options)
    assert texts(events) == {0: "one", 1: "second"}
    assert all(len(event["choices"]) == 1 for event in events[:-2])
    assert events[-2]["usage"]["completion_tokens"] == 9
    assert events[-2]["usage"]["prompt_tokens"] == 20


async def test_logprobs_carry_bytes_and_add_up_to_the_text() -> None:
    async with running(FakeEngine(["é!"])) as api:
        answer = await api.ok(PATH, messages=HELLO, logprobs=True, top_logprobs=2)
    content = answer["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["", "é", "!"]
    assert [entry["bytes"] for entry in content] == [[0xC3], [0xA9], [0x21]]
    assert content[2]["top_logprobs"] == [
        {"token": "!", "logprob": -0.5, "bytes": [33]},
        {"token": "a", "logprob": -1.5, "bytes": [97]},
    ]


async def test_logprobs_without_alternatives() -> None:
    async with running() as api:
        answer = await api.ok(PATH, messages=HELLO, logprobs=True)
        assert answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
        assert api.engine.requests[0].n_logprobs == 0


async def test_streamed_logprobs_come_one_token_a_chunk() -> None:
    async with running(FakeEngine(["aé"])) as api:
        events = await api.events(PATH, messages=HELLO, logprobs=True, top_logprobs=1)
    choices = [event["choices"][0] for event in events[:-1] if event["choices"][0]["logprobs"]]
    assert [len(choice["logprobs"]["content"]) for choice in choices] == [1, 1, 1]
    assert [choice["delta"]["content"] for choice in choices] == ["a", "", "é"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"max_tokens": 3}, 3),
        ({"max_completion_tokens": 4, "max_tokens": 3}, 4),
        ({"n_predict": -1}, None),
        ({}, None),
    ],
)
async def test_the_limit_under_its_names(body: dict[str, Any], expected: int | None) -> None:
    async with running() as api:
        await api.ok(PATH, messages=HELLO, **body)
        assert api.engine.requests[0].max_tokens == expected


async def test_every_sampler_is_taken_here_too() -> None:
    async with running() as api:
        await api.ok(PATH, messages=HELLO, min_p=0.1, rep_pen=1.1, dry_multiplier=0.5, top_k=7, n_probs=None)
        sampling = api.engine.requests[0].sampling
        assert (sampling.min_p, sampling.repeat_penalty, sampling.dry_multiplier, sampling.top_k) == (0.1, 1.1, 0.5, 7)


async def test_what_a_template_can_use_reaches_it() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "signature": "x"},
        {"role": "tool", "tool_call_id": "1", "content": "42", "name": "f"},
    ]
    async with running() as api:
        await api.ok(
            PATH,
            messages=messages,
            chat_template_kwargs={"enable_thinking": False},
            add_generation_prompt=False,
            continue_final_message=False,
        )
        (chat,) = api.text.chats
    assert chat.messages == (
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "42", "name": "f", "tool_call_id": "1"},
    )
    assert chat.template_kwargs == {"enable_thinking": False}
    assert (chat.add_generation_prompt, chat.continue_final_message) == (False, False)


async def test_the_last_message_of_the_assistant_is_continued_and_not_repeated() -> None:
    async with running() as api:
        answer = await api.ok(PATH, messages=[*HELLO, {"role": "assistant", "content": "Well"}])
        assert bytes(api.engine.requests[0].prompt) == b"user: hi\nassistant: Well"
        assert answer["choices"][0]["message"]["content"] == "Hello world"


@pytest.mark.parametrize("stream", [False, True])
async def test_repairs_are_told_in_a_header(stream: bool) -> None:
    async with running() as api:
        response = await api.post(PATH, {"messages": HELLO * 2, "stream": stream})
        assert response.headers["x-ggufd-repairs"] == "merge_same_role"
        response = await api.post(PATH, {"messages": HELLO, "stream": stream})
        assert "x-ggufd-repairs" not in response.headers


@pytest.mark.parametrize("stream", [False, True])
async def test_biases_of_a_guessed_tokenizer_are_dropped_and_told_in_a_header(stream: bool) -> None:
    async with running() as api:
        body = {"messages": HELLO, "stream": stream}
        response = await api.post(PATH, {**body, "logit_bias": {"100": 5, "100277": -100}})
        assert response.status_code == 200
        assert response.headers["x-ggufd-ignored"] == "logit_bias"
        assert api.engine.requests[0].sampling.logit_bias == ((100, 5.0),)
        response = await api.post(PATH, {**body, "logit_bias": {"100": 5}})
        assert "x-ggufd-ignored" not in response.headers
        assert api.engine.requests[1].sampling.logit_bias == ((100, 5.0),)


async def test_other_routes_refuse_foreign_biases() -> None:
    async with running() as api:
        for path in ("/v1/completions", "/completion"):
            error = await api.refused(path, {"prompt": "a", "logit_bias": {"100277": -100}})
            assert error["param"] == "logit_bias"


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "messages", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hi"}, "messages", "invalid_value"),
        ({"messages": ["hi"]}, "messages[0]", "invalid_value"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": ["user"], "content": "hi"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "king", "content": "hi"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_value"),
        ({"messages": [*HELLO, {"role": "user", "content": 3}]}, "messages[1].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": [3]}]}, "messages[0].content[0]", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            "messages[0].content[0].image_url",
            "unsupported",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "messages[0].content[0]",
            "unsupported",
        ),
        ({"messages": [{"role": "user", "content": "a", "name": 3}]}, "messages[0].name", "invalid_value"),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "messages[0].tool_calls[0].function",
            "invalid_value",
        ),
        (
            {
                "messages": HELLO,
                "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}},
            },
            "response_format",
            "invalid_value",
        ),
        ({"messages": HELLO, "response_format": {"type": "x"}}, "response_format", "invalid_value"),
        ({"messages": HELLO, "top_logprobs": 5}, "top_logprobs", "invalid_value"),
        ({"messages": HELLO, "logprobs": 5}, "logprobs", "invalid_value"),
        ({"messages": HELLO, "stop": 5}, "stop", "invalid_value"),
        ({"messages": HELLO, "modalities": ["text", "audio"]}, "modalities", "unsupported"),
        ({"messages": HELLO, "max_completion_tokens": -5}, "max_completion_tokens", "invalid_value"),
        ({"messages": HELLO, "n": 65}, "n", "invalid_value"),
        ({"messages": HELLO, "chat_template_kwargs": []}, "chat_template_kwargs", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, "messages", "context_length_exceeded"),
    ],
)
async def test_a_wrong_request_is_a_400_that_names_the_field(body: dict[str, Any], param: str, code: str) -> None:
    async with running() as api:
        error = await api.refused(PATH, body)
        assert (error["param"], error["code"]) == (param, code)
        assert api.engine.requests == []


async def test_the_route_answers_without_its_prefix_and_with_slashes() -> None:
    async with running() as api:
        for path in (
            "/chat/completions",
            "http://test//chat//completions",
            "/v1//chat/completions",
            "/v1/chat/completions/",
        ):
            await api.ok(path, messages=HELLO)


async def test_another_method_is_a_405_in_the_error_shape() -> None:
    async with running() as api:
        response = await api.http.get(PATH)
        assert response.headers["allow"] == "POST"
        assert error_of(response, 405)["code"] == "method_not_allowed"


async def test_the_prompts_tokens_are_counted_and_nothing_is_generated() -> None:
    async with running() as api:
        answer = await api.ok("/v1/chat/completions/input_tokens", messages=HELLO, model="any", temperature=0.5)
        assert answer == {"object": "response.input_tokens", "input_tokens": len(b"user: Hi\nassistant: ")}
        assert api.engine.requests == []
        error = await api.refused("/v1/chat/completions/input_tokens", {"messages": "x"})
        assert error["param"] == "messages"
