"""Tools and thoughts with the real server and the demo model, through the `openai` client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI

from ggufd.chat.rendering.template import CHATML
from tests.support.limits import ANSWER_S
from tests.support.programs.live_server import live_server

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "Tells the time."}}
TOOLS: Any = [WEATHER, CLOCK]
ASKED: Any = [{"role": "user", "content": "What is the weather in Paris? Call get_weather."}]


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    """A client of a server with the demo model, whose template knows neither tools nor thoughts."""
    with live_server("-t", "1") as server, OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as one:
        yield one


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """The same with a template that opens thoughts."""
    template: Path = tmp_path_factory.mktemp("template") / "thinks.jinja"
    opens = "{{ '<think>\\n' if add_generation_prompt and (enable_thinking is not defined or enable_thinking) }}"
    template.write_text(CHATML + opens, encoding="utf-8")
    flags = ["-t", "1", "--chat-template-file", str(template)]
    with live_server(*flags) as server, OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as one:
        yield one


def checked(name: str, arguments: str) -> tuple[str, dict[str, Any]]:
    """A call whose arguments fit the tool that it names."""
    values = json.loads(arguments)
    if name == "get_weather":
        assert isinstance(values["city"], str)
        assert values.get("unit", "celsius") in ("celsius", "fahrenheit")
        assert set(values) <= {"city", "unit"}
    else:
        assert (name, values) == ("clock", {})
    return name, values


def whole(client: OpenAI, **options: Any) -> tuple[Any, str]:
    """The message and the finish reason."""
    body: Any = {"messages": ASKED, "tools": TOOLS, "max_tokens": 150, "temperature": 0, **options}
    choice = client.chat.completions.create(model="any", **body).choices[0]
    return choice.message, choice.finish_reason


def streamed(client: OpenAI, **options: Any) -> tuple[str, list[tuple[str, dict[str, Any]]], str]:
    """Content, calls and finish reason of a stream; what must come once is checked to."""
    body: Any = {"messages": ASKED, "tools": TOOLS, "max_tokens": 150, "temperature": 0, "stream": True, **options}
    content, reason, heads, arguments = "", "", [], {}
    for chunk in client.chat.completions.create(model="any", **body):
        (choice,) = chunk.choices
        reason = choice.finish_reason or reason
        content += choice.delta.content or ""
        for part in choice.delta.tool_calls or ():
            if part.index == len(heads):
                assert part.id
                assert part.type == "function"
                heads.append((part.id, part.function.name))
                arguments[part.index] = ""
            else:
                assert part.index == len(heads) - 1
                assert (part.id, part.type, part.function.name) == (None, None, None)
            arguments[part.index] += part.function.arguments
    assert len({call_id for call_id, _ in heads}) == len(heads)
    return content, [checked(name, arguments[index]) for index, (_, name) in enumerate(heads)], reason


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_a_required_call_is_made_streamed_or_not(client: OpenAI, temperature: float) -> None:
    options: dict[str, Any] = {"tool_choice": "required", "temperature": temperature}
    message, reason = whole(client, **options)
    (call,) = message.tool_calls
    checked(call.function.name, call.function.arguments)
    assert (message.content, reason) == (None, "tool_calls")
    content, calls, reason = streamed(client, **options)
    assert (content, len(calls), reason) == ("", 1, "tool_calls")


def test_a_stream_says_what_the_whole_answer_does(client: OpenAI) -> None:
    options: dict[str, Any] = {"tool_choice": "required", "parallel_tool_calls": True, "max_tokens": 400}
    message, reason = whole(client, **options)
    content, calls, streamed_reason = streamed(client, **options)
    assert calls == [checked(call.function.name, call.function.arguments) for call in message.tool_calls]
    assert (message.content or "", reason) == (content, streamed_reason) == ("", "tool_calls")


def test_several_calls_of_an_answer_differ(client: OpenAI) -> None:
    body: Any = {"messages": ASKED, "tools": TOOLS, "tool_choice": "required", "max_tokens": 200, "temperature": 1.5}
    answer = client.chat.completions.create(model="any", n=4, parallel_tool_calls=True, **body)
    for choice in answer.choices:
        said = choice.message.tool_calls or []
        # A limit may cut the last one.
        whole_calls = said if choice.finish_reason == "tool_calls" else said[:-1]
        calls = [checked(call.function.name, call.function.arguments) for call in whole_calls]
        assert all(call not in calls[:place] for place, call in enumerate(calls))


def test_a_call_that_was_made_already_ends_the_answer_and_frees_the_slot(client: OpenAI) -> None:
    asked = client.with_options(timeout=60).chat.completions
    body: Any = {"messages": ASKED, "tools": TOOLS, "temperature": 0, "max_tokens": 3000}
    body |= {"tool_choice": "required", "parallel_tool_calls": True}
    answer = asked.create(model="any", **body)
    assert [call.function.name for call in answer.choices[0].message.tool_calls or ()] == ["get_weather"]
    assert answer.usage is not None
    # Twice the call, of about 30 tokens.
    assert 40 < answer.usage.completion_tokens < 80
    assert asked.create(model="any", **body).usage.completion_tokens == answer.usage.completion_tokens
    slots = httpx.get(str(client.base_url.join("/slots")), trust_env=False, timeout=ANSWER_S).json()
    assert not any(slot["is_processing"] for slot in slots)


def test_a_named_tool_is_called_once(client: OpenAI) -> None:
    message, _ = whole(client, tool_choice={"type": "function", "function": {"name": "clock"}})
    assert [call.function.name for call in message.tool_calls] == ["clock"]


def test_auto_answers_or_calls(client: OpenAI) -> None:
    message, reason = whole(client, tool_choice="auto")
    for call in message.tool_calls or ():
        checked(call.function.name, call.function.arguments)
    assert message.content or message.tool_calls
    assert (reason == "tool_calls") == bool(message.tool_calls)
    assert streamed(client, tool_choice="auto")[0] == (message.content or "")


def test_none_calls_nothing(client: OpenAI) -> None:
    message, _ = whole(client, tool_choice="none", max_tokens=20)
    assert message.tool_calls is None
    assert message.content


def test_calls_fit_in_every_choice_and_beside_banned_strings(client: OpenAI) -> None:
    body: Any = {"messages": ASKED, "tools": TOOLS, "tool_choice": "required", "max_tokens": 120}
    extra = {"banned_strings": ["Paris", "celsius"], "xtc_probability": 0.5, "min_p": 0.05}
    answer = client.chat.completions.create(
        model="any", n=3, temperature=1.5, parallel_tool_calls=False, extra_body=extra, **body
    )
    for choice in answer.choices:
        (call,) = choice.message.tool_calls or ()
        if choice.finish_reason == "tool_calls":
            name, values = checked(call.function.name, call.function.arguments)
            assert "paris" not in str(values).lower()
            assert values.get("unit") != "celsius", name


def test_a_result_goes_back_and_is_answered(client: OpenAI) -> None:
    message, _ = whole(client, tool_choice={"type": "function", "function": {"name": "get_weather"}})
    call = message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 20 degrees."}
    told = [*ASKED, message.model_dump(exclude_none=True), result]
    answer, _ = whole(client, messages=told, max_tokens=30)
    assert answer.content or answer.tool_calls


def test_a_result_without_its_call_is_refused(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refusal:
        whole(client, messages=[*ASKED, {"role": "tool", "tool_call_id": "x", "content": "Sunny."}])
    assert refusal.value.param == "messages[1].tool_call_id"


def thoughts(message: Any) -> str:
    return str(message.model_dump().get("reasoning_content") or "")


@pytest.mark.parametrize("budget", [4, 12])
def test_thoughts_end_with_their_budget_and_an_answer_follows(thinker: OpenAI, budget: int) -> None:
    # The demo model was not trained to think, and would have nothing to say after its thoughts.
    extra = {"reasoning_budget": budget, "min_tokens": 40}
    message, _ = whole(thinker, tools=[], max_tokens=60, extra_body=extra)
    assert 0 < len(thoughts(message).split()) <= budget
    assert len(message.content.split()) > budget


def test_no_budget_means_no_thoughts(thinker: OpenAI) -> None:
    message, _ = whole(thinker, tools=[], max_tokens=20, extra_body={"reasoning_budget": 0})
    assert thoughts(message) == ""
    assert message.content


def test_structured_output_and_calls_begin_after_the_thoughts(thinker: OpenAI) -> None:
    extra = {"reasoning_budget": 8}
    schema = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
    form = {"type": "json_schema", "json_schema": {"name": "mood", "schema": {**schema, "additionalProperties": False}}}
    message, reason = whole(thinker, tools=[], response_format=form, extra_body=extra)
    assert thoughts(message)
    assert json.loads(message.content)["mood"] in ("good", "bad")
    assert reason == "stop"
    message, reason = whole(thinker, tool_choice="required", extra_body=extra)
    (call,) = message.tool_calls
    checked(call.function.name, call.function.arguments)
    assert thoughts(message)
    assert reason == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_that_a_grammar_forces_are_counted(client: OpenAI, stream: bool) -> None:
    forced = {"grammar": 'root ::= "<think>It rained, so it is wet.</think>" ("Wet" | "Dry") "."'}
    body: Any = {"messages": ASKED, "max_tokens": 60, "temperature": 0}
    with_rows = client.chat.completions.create(model="any", logprobs=True, extra_body=forced, **body)
    assert thoughts(with_rows.choices[0].message) == "It rained, so it is wet."
    if stream:
        body["stream_options"] = {"include_usage": True}
        usage = list(client.chat.completions.create(model="any", stream=True, extra_body=forced, **body))[-1].usage
    else:
        usage = client.chat.completions.create(model="any", extra_body=forced, **body).usage
    # As many as where each token is chosen from a row of its own.
    assert with_rows.usage is not None
    assert usage.completion_tokens == with_rows.usage.completion_tokens
    assert usage.completion_tokens_details == with_rows.usage.completion_tokens_details
    assert usage.completion_tokens_details.reasoning_tokens >= 8
