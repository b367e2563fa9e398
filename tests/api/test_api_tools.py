"""Tools and thoughts on `/v1/chat/completions` over the fakes: what the model is told, what the client is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ggufd.api.services.settings import OutputDefaults
from ggufd.engine.messages.sampling import Grammar, GrammarKind
from ggufd.errors import InvalidRequest
from tests.support.fakes.api_client import running
from tests.support.fakes.fake_engine import FakeEngine, FakeText

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
PARIS = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'


NO_ARGUMENTS = {"type": "object", "properties": {}}


def says(*answers: str) -> FakeEngine:
    """An engine with room for tools in its prompts."""
    return FakeEngine(answers, n_ctx=2048)


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def with_schema(**keywords: Any) -> dict[str, Any]:
    """A request with one tool of this schema."""
    return {"tools": [{"function": {"name": "f", "parameters": {"type": "object", **keywords}}}]}


async def test_without_parsing_an_answer_stays_as_it_was_written() -> None:
    output = OutputDefaults(chat_parsing=False)
    async with running(says(f"<think>a</think>I look.\n{PARIS}"), output=output) as api:
        answer = await api.ok(PATH, messages=HELLO, tools=[WEATHER])
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == f"<think>a</think>I look.\n{PARIS}"
    assert not choice["message"].get("tool_calls")
    assert not choice["message"].get("reasoning_content")


async def test_calls_are_told_apart_from_content() -> None:
    async with running(says(f"I look.\n{PARIS}\n{NOW}")) as api:
        answer = await api.ok(PATH, messages=HELLO, tools=[WEATHER, CLOCK])
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "I look."
    first, second = choice["message"]["tool_calls"]
    assert first["function"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    assert second["function"] == {"name": "clock", "arguments": "{}"}
    assert first["type"] == second["type"] == "function"
    assert first["id"] != second["id"]
    assert first["id"].startswith("call_")


async def test_a_call_that_a_stop_string_cut_is_no_call_to_make() -> None:
    async with running(says(PARIS)) as api:
        cut = await api.ok(PATH, messages=HELLO, tools=[WEATHER], stop=["Paris"])
        events = await api.events(PATH, messages=HELLO, tools=[WEATHER], stop=["Paris"])
        whole = await api.ok(PATH, messages=HELLO, tools=[WEATHER], stop=["</tool_call>"])
    assert cut["choices"][0]["finish_reason"] == events[-2]["choices"][0]["finish_reason"] == "stop"
    assert whole["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("body", [{"max_tokens": 18}, {"stop": ["get_w"]}])
async def test_a_head_of_a_call_that_was_cut_is_not_said(body: dict[str, Any]) -> None:
    async with running(says(f"I look.\n{PARIS}")) as api:
        (choice,) = (await api.ok(PATH, messages=HELLO, tools=[WEATHER], **body))["choices"]
        events = await api.events(PATH, messages=HELLO, tools=[WEATHER], **body)
    assert choice["message"]["content"].strip() == "I look."
    assert choice["finish_reason"] == ("length" if "max_tokens" in body else "stop")
    deltas = [event["choices"][0]["delta"] for event in events if isinstance(event, dict)]
    assert "".join(delta.get("content") or "" for delta in deltas).strip() == "I look."


async def test_the_head_of_a_call_is_no_thought() -> None:
    async with running(says(f"<think>ab</think>\n{PARIS}")) as api:
        for kept in ("deepseek", "none"):
            usage = (await api.ok(PATH, messages=HELLO, tools=[WEATHER], reasoning_format=kept))["usage"]
            assert usage["completion_tokens_details"]["reasoning_tokens"] < len("<think>ab</think>") + 1


async def test_calls_alone_have_no_content() -> None:
    async with running(says(PARIS)) as api:
        answer = await api.ok(PATH, messages=HELLO, tools=[WEATHER])
    assert answer["choices"][0]["message"]["content"] is None


async def test_streamed_calls_say_id_type_and_name_once() -> None:
    async with running(says(f"I look.\n{PARIS}\n{NOW}")) as api:
        events = await api.events(PATH, messages=HELLO, tools=[WEATHER, CLOCK])
    choices = [event["choices"][0] for event in events[:-1]]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "I look."
    calls: dict[int, dict[str, str]] = {}
    for choice in choices:
        for part in choice["delta"].get("tool_calls", ()):
            call = calls.setdefault(part["index"], {"id": "", "type": "", "name": "", "arguments": ""})
            for key in ("id", "type"):
                call[key] += part.get(key, "")
            for key in ("name", "arguments"):
                call[key] += part["function"].get(key, "")
    assert [(call["type"], call["name"], json.loads(call["arguments"])) for call in calls.values()] == [
        ("function", "get_weather", {"city": "Paris"}),
        ("function", "clock", {}),
    ]
    assert choices[-1]["finish_reason"] == "tool_calls"


def spelled_otherwise(call: str) -> str:
    return call.replace('": ', '":').replace("\n", "")


LOOP = "\n".join([PARIS, NOW, spelled_otherwise(PARIS), *[PARIS] * 50])


@pytest.mark.parametrize("limit", [1000, len(f"{PARIS}\n{NOW}\n{spelled_otherwise(PARIS)}")])
async def test_a_call_that_was_made_already_ends_the_answer_unsaid(limit: int) -> None:
    body = {"messages": HELLO, "tools": [WEATHER, CLOCK], "max_tokens": limit, "parallel_tool_calls": True}
    async with running(says(LOOP, "No.")) as api:
        answer = await api.ok(PATH, **body, n=2)
        events = await api.events(PATH, **body, n=2, stream_options={"include_usage": True})
        assert [index for _, index in api.engine.finished] == [0, 0]
        assert api.engine.aborted == []
    looping, other = answer["choices"]
    calls = [call["function"] for call in looping["message"]["tool_calls"]]
    assert calls == [{"name": "get_weather", "arguments": '{"city": "Paris"}'}, {"name": "clock", "arguments": "{}"}]
    assert (looping["finish_reason"], other["finish_reason"]) == ("tool_calls", "stop")
    choices = [choice for event in events if isinstance(event, dict) for choice in event["choices"]]
    deltas = [choice["delta"] for choice in choices if choice["index"] == 0]
    parts = [part for delta in deltas for part in delta.get("tool_calls", ())]
    assert [part["function"]["name"] for part in parts if "id" in part] == ["get_weather", "clock"]
    assert "".join(part["function"]["arguments"] for part in parts) == '{"city": "Paris"}{}'
    assert not any(delta.get("content") for delta in deltas)
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop", "tool_calls"]
    # Up to the bracket at which the third call is known to be the first one.
    n_written = len(f"{PARIS}\n{NOW}\n{spelled_otherwise(PARIS)}") - len("}</tool_call>")
    assert answer["usage"]["completion_tokens"] == n_written + len("No.")
    assert events[-2]["usage"] == answer["usage"]


async def test_of_what_comes_behind_the_end_of_an_answer_no_log_probabilities_are_told() -> None:
    body = {"messages": HELLO, "tools": [CLOCK], "parallel_tool_calls": True, "logprobs": True}
    async with running(says(f"{NOW}{NOW}{NOW}")) as api:
        answer = await api.ok(PATH, **body)
        events = await api.events(PATH, **body)
    told = [choice["logprobs"] for event in events[:-1] for choice in event["choices"] if choice["logprobs"]]
    streamed = [entry["token"] for logprobs in told for entry in logprobs["content"]]
    whole = [entry["token"] for entry in answer["choices"][0]["logprobs"]["content"]]
    assert "".join(whole) == "".join(streamed) == (NOW + NOW).removesuffix("}\n</tool_call>")
    assert len(whole) == answer["usage"]["completion_tokens"]


async def test_an_answer_that_ended_with_a_repeated_call_is_held_to_its_schemas() -> None:
    async with running(says(f"{PARIS}{NOW}{NOW}{PARIS}")) as api:
        await api.ok(PATH, messages=HELLO, tools=[WEATHER, CLOCK], parallel_tool_calls=True)
        assert api.text.checked == [(WEATHER["function"]["parameters"], '{"city": "Paris"}'), (NO_ARGUMENTS, "{}")]


@pytest.mark.parametrize("sent", [None, True, False])
async def test_without_a_word_a_model_that_was_trained_to_call_nothing_makes_one_call(sent: bool | None) -> None:
    async with running(says("Hello")) as api:
        await api.ok(PATH, messages=HELLO, tools=[CLOCK], tool_choice="required", parallel_tool_calls=sent)
        (request,), (chat,) = api.engine.requests, api.text.chats
    assert chat.parallel_tool_calls is sent
    prompt = bytes(request.prompt).decode()
    assert request.sampling.grammar is not None
    assert ("one after another" in prompt) == ("{0,31}" in request.sampling.grammar.text) == (sent is True)


async def test_each_choice_has_calls_of_its_own() -> None:
    async with running(says(PARIS, "No.", NOW)) as api:
        answer = await api.ok(PATH, messages=HELLO, tools=[WEATHER, CLOCK], n=3)
    reasons = [choice["finish_reason"] for choice in answer["choices"]]
    assert reasons == ["tool_calls", "stop", "tool_calls"]


async def test_a_template_without_tools_is_told_of_them_in_words() -> None:
    system = {"role": "system", "content": "Be brief."}
    async with running(says("Hello")) as api:
        await api.ok(PATH, messages=[system, *HELLO], tools=[WEATHER], tool_choice="required")
        prompt = bytes(api.engine.requests[0].prompt).decode()
    assert '{"name": "get_weather", "description": "Weather of a city", "parameters"' in json.loads(
        json.dumps(prompt).replace("\\\\n", "\\n")
    )
    assert "Call a tool now." in prompt
    assert "Be brief." in prompt


async def test_a_history_told_in_words_may_come_in_parts() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    turn = {"role": "assistant", "content": [{"type": "text", "text": "I look."}], "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "Noon"}]}
    async with running(says("ok")) as api:
        await api.ok(PATH, messages=[*HELLO, turn, result], tools=[CLOCK])
    prompt = bytes(api.engine.requests[0].prompt).decode()
    assert "assistant: I look.\n<tool_call>" in prompt
    assert "<tool_response>\nNoon\n</tool_response>" in prompt


async def test_calls_are_held_from_the_first_token_where_one_is_required() -> None:
    async with running(says("Hello")) as api:
        for choice in ("auto", "required", named("clock"), "none", None):
            await api.ok(PATH, messages=HELLO, tools=[WEATHER, CLOCK], tool_choice=choice)
        auto, required, clock, none, unset = [request.sampling.grammar for request in api.engine.requests]
    assert auto == unset
    assert auto is not None
    assert auto.kind is GrammarKind.LARK
    assert required is not None
    assert required.text.startswith('start: "<tool_call>"')
    assert clock is not None
    assert "get_weather" not in clock.text
    assert none is None


async def test_content_beside_calls_may_have_a_grammar_of_its_own() -> None:
    schema = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}
    async with running(says("Hello")) as api:
        await api.ok(PATH, messages=HELLO, tools=[CLOCK], response_format=schema)
        await api.ok(PATH, messages=HELLO, tools=[CLOCK], tool_choice="required", response_format=schema)
        either, calls = [request.sampling.grammar for request in api.engine.requests]
    assert either is not None
    assert either.kind is GrammarKind.JSON_SCHEMA
    assert "@body" in either.frame
    assert calls is not None
    assert calls.kind is GrammarKind.LARK


async def test_a_schema_that_cannot_be_enforced_is_refused_where_it_is_strict() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "x": "nonsense"}}}
    async with running(says("Hello")) as api:
        response = await api.post(PATH, {"messages": HELLO, "tools": [tool]})
        assert response.headers["x-ggufd-repairs"] == "any_arguments:f"
        tool["function"]["strict"] = True  # type: ignore[index]
        error = await api.refused(PATH, {"messages": HELLO, "tools": [CLOCK, tool]})
        assert error["param"] == "tools[1].function.parameters"


@pytest.mark.parametrize("stream", [False, True])
async def test_thoughts_are_told_apart(stream: bool) -> None:
    async with running(
        FakeEngine(["Hm, so.\n</think>\n\nYes."]), FakeText(template="<think>", opened="<think>\n")
    ) as api:
        if stream:
            events = await api.events(PATH, messages=HELLO)
            deltas = [event["choices"][0]["delta"] for event in events[:-1]]
            message = {
                name: "".join(delta.get(name, "") for delta in deltas) for name in ("content", "reasoning_content")
            }
        else:
            message = (await api.ok(PATH, messages=HELLO))["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("Hm, so.", "Yes.")


async def test_thoughts_may_stay_in_the_content() -> None:
    async with running(says("Hm.</think>Yes."), FakeText(template="<think>", opened="<think>\n")) as api:
        answer = await api.ok(PATH, messages=HELLO, reasoning_format="none")
    message = answer["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "<think>\nHm.</think>Yes.", "refusal": None}


async def test_structured_output_begins_after_the_thoughts() -> None:
    async with running(says("</think>{}"), FakeText(template="<think>", opened="<think>\n")) as api:
        answer = await api.ok(PATH, messages=HELLO, response_format={"type": "json_object"})
        grammar = api.engine.requests[0].sampling.grammar
    assert grammar is not None
    assert grammar.kind is GrammarKind.JSON_SCHEMA
    assert "</think>" in grammar.frame
    assert answer["choices"][0]["message"]["content"] == "{}"


@pytest.mark.parametrize("stream", [False, True])
async def test_content_inside_an_answer_is_held_to_its_schema_too(stream: bool) -> None:
    body = {"messages": HELLO, "response_format": {"type": "json_object"}, "tools": [CLOCK], "stream": stream}
    text = FakeText(template="<think>", opened="<think>\n")
    async with running(says(f"Hm.</think>[1]{NOW}"), text) as api:
        await api.post(PATH, body)
        text.invalid_texts.add("[1]")
        response = await api.post(PATH, body)
    assert text.checked == [(NO_ARGUMENTS, "{}"), ({"type": "object"}, "[1]")] * 2
    assert "not what its JSON schema asks for" in response.text
    assert response.status_code == (200 if stream else 500)


async def test_an_answer_that_only_calls_tools_has_no_content_to_be_checked() -> None:
    async with running(says(f"Hm.</think>{NOW}"), FakeText(template="<think>", opened="<think>\n")) as api:
        await api.ok(PATH, messages=HELLO, response_format={"type": "json_object"}, tools=[CLOCK])
        assert api.text.checked == [(NO_ARGUMENTS, "{}")]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_arguments_of_every_call_are_held_to_its_schema_once_more(stream: bool) -> None:
    body = {"messages": HELLO, "tools": [WEATHER, CLOCK], "stream": stream}
    async with running(says(f"So: {NOW}\n{PARIS}")) as api:
        await api.post(PATH, body)
        assert api.text.checked == [(NO_ARGUMENTS, "{}"), (WEATHER["function"]["parameters"], '{"city": "Paris"}')]
        api.text.invalid_texts.add('{"city": "Paris"}')
        response = await api.post(PATH, body)
    assert "not what its JSON schema asks for" in response.text
    assert response.status_code == (200 if stream else 500)


async def test_arguments_that_were_not_held_or_not_finished_are_not_looked_at() -> None:
    loose = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "x": "nonsense"}}}
    async with running(says(NOW)) as api:
        await api.ok(PATH, messages=HELLO, tools=[loose])
        await api.ok(PATH, messages=HELLO, tools=[CLOCK], max_tokens=len(NOW) - 20)
        assert api.text.checked == []


@pytest.mark.parametrize("stream", [False, True])
async def test_usage_tells_how_much_was_thought(stream: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if stream else {}
    text = FakeText(template="<think>", opened="<think>\n")
    async with running(FakeEngine(["Hm, so.</think>Yes.", "Hm.</think>No."]), text) as api:
        body = {"messages": HELLO, "n": 2, **options}
        answer = (await api.events(PATH, **body))[-2] if stream else await api.ok(PATH, **body)
    told = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert len("Hm, so.Hm.") <= told <= len("Hm, so.</think>Hm.</think>")


async def test_log_probabilities_stand_beside_calls_and_thoughts() -> None:
    async with running(says(f"<think>a</think>b{NOW}")) as api:
        events = await api.events(PATH, messages=HELLO, tools=[CLOCK], logprobs=True)
    choices = [event["choices"][0] for event in events[:-1]]
    entries = [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
    assert "".join(entry["token"] for entry in entries) == f"<think>a</think>b{NOW}"


@pytest.mark.parametrize(
    ("body", "kwargs"),
    [
        ({"reasoning_effort": "high"}, {"reasoning_effort": "high"}),
        ({"reasoning_effort": "none"}, {"enable_thinking": False}),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
        ({"reasoning_budget": 0}, {"enable_thinking": False}),
        ({"thinking_budget_tokens": 5}, {}),
    ],
)
async def test_what_says_how_much_to_think_reaches_the_template(body: dict[str, Any], kwargs: dict[str, Any]) -> None:
    async with running(says("Hello")) as api:
        await api.ok(PATH, messages=HELLO, **body)
        assert api.text.chats[0].template_kwargs == kwargs


@pytest.mark.parametrize(
    ("body", "kwargs"),
    [
        ({}, {"enable_thinking": False, "a": 1}),
        ({"reasoning_effort": "high"}, {"enable_thinking": False, "a": 1, "reasoning_effort": "high"}),
        ({"chat_template_kwargs": {"enable_thinking": True}}, {"enable_thinking": True, "a": 1}),
    ],
)
async def test_a_request_overrides_the_servers_template_variables_one_by_one(
    body: dict[str, Any], kwargs: dict[str, Any]
) -> None:
    async with running(says("Hello"), template_kwargs={"enable_thinking": False, "a": 1}) as api:
        await api.ok(PATH, messages=HELLO, **body)
        assert api.text.chats[0].template_kwargs == kwargs


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": ["f"]}, "tools[0]"),
        ({"tools": [CLOCK, {"type": "function"}]}, "tools[1].function"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tools": [CLOCK, CLOCK]}, "tools[1].function.name"),
        ({"tools": [{"function": {"name": "f", "description": 3}}]}, "tools[0].function.description"),
        ({"tools": [{"function": {"name": "f", "parameters": []}}]}, None),
        ({"tools": [{"function": {"name": "f", "parameters": "x"}}]}, "tools[0].function.parameters"),
        ({"tools": [{"function": {"name": "f", "parameters": {"type": "string"}}}]}, "tools[0].function.parameters"),
        ({"tools": [{"function": {"name": "f", "strict": "yes"}}]}, "tools[0].function.strict"),
        (with_schema(properties=[]), "tools[0].function.parameters.properties"),
        (with_schema(required=5), "tools[0].function.parameters.required"),
        (with_schema(required=[5]), "tools[0].function.parameters.required"),
        ({"tools": [CLOCK], "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": 3}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function"}}, "tool_choice.function.name"),
        ({"tools": [CLOCK], "tool_choice": named("get_weather")}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": {"type": "allowed_tools", "tools": []}}, "tool_choice.tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [CLOCK], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"reasoning_format": "x"}, "reasoning_format"),
        ({"reasoning_effort": "x"}, "reasoning_effort"),
        ({"reasoning_budget": -2}, "reasoning_budget"),
    ],
)
async def test_a_wrong_tool_or_choice_is_a_400_that_names_the_place(body: dict[str, Any], param: str | None) -> None:
    async with running(says("Hello")) as api:
        if param is None:
            await api.ok(PATH, messages=HELLO, **body)
            return
        error = await api.refused(PATH, {"messages": HELLO, **body})
        assert error["param"] == param
        assert api.engine.requests == []


@pytest.mark.parametrize(
    ("body", "max_tokens"),
    [
        ({}, None),
        ({"reasoning_budget": 7}, 7),
        ({"thinking_budget_tokens": 0}, 0),
        ({"reasoning_budget": -1}, None),
        ({"reasoning_effort": "none"}, 0),
    ],
)
async def test_the_budget_of_thoughts_bounds_them(body: dict[str, Any], max_tokens: int | None) -> None:
    for opened, opening in (("<think>\n", ""), ("", "<think>")):
        async with running(says("</think>"), FakeText(template="<think>", opened=opened)) as api:
            await api.ok(PATH, messages=HELLO, **body)
            limit = api.engine.requests[0].reasoning_budget
        assert limit is not None
        assert (limit.opening, limit.closing, limit.max_tokens) == (opening, "</think>", max_tokens)


async def test_the_servers_own_budget_and_format_hold_where_a_request_has_none() -> None:
    settings = {"reasoning_budget": 5, "reasoning_format": "none"}
    async with running(says("a</think>b"), FakeText(template="<think>", opened="<think>"), **settings) as api:
        answer = await api.ok(PATH, messages=HELLO)
        own = await api.ok(PATH, messages=HELLO, reasoning_budget=-1, reasoning_format="deepseek")
        limits = [request.reasoning_budget for request in api.engine.requests]
    assert [limit and limit.max_tokens for limit in limits] == [5, None]
    assert answer["choices"][0]["message"]["content"] == "<think>a</think>b"
    assert own["choices"][0]["message"]["reasoning_content"] == "a"


async def test_nothing_is_bounded_where_no_thoughts_can_be() -> None:
    async with running(says("a")) as api:
        await api.ok(PATH, messages=HELLO, reasoning_budget=3)
        assert api.engine.requests[0].reasoning_budget is None


CALL = {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}


def history(*calls: Any, **result: Any) -> list[dict[str, Any]]:
    called = {"role": "assistant", "content": None, "tool_calls": list(calls)}
    return [*HELLO, called, {"role": "tool", "content": "noon", **result}]


def with_call(**changes: Any) -> dict[str, Any]:
    return {**CALL, **changes}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (history("f"), "messages[1].tool_calls[0]"),
        (history(with_call(type="x")), "messages[1].tool_calls[0].type"),
        (history(with_call(id=3)), "messages[1].tool_calls[0].id"),
        (history(CALL, CALL), "messages[1].tool_calls[1].id"),
        (history(with_call(function="f")), "messages[1].tool_calls[0].function"),
        (history(with_call(function={"name": ""})), "messages[1].tool_calls[0].function.name"),
        (history(with_call(function={"name": "f", "arguments": "{"})), "messages[1].tool_calls[0].function.arguments"),
        (history(with_call(function={"name": "f", "arguments": "[]"})), "messages[1].tool_calls[0].function.arguments"),
        (history(with_call(function={"name": "f", "arguments": 3})), "messages[1].tool_calls[0].function.arguments"),
        (history(CALL, tool_call_id="call_2"), "messages[2].tool_call_id"),
        (history(CALL, tool_call_id=3), "messages[2].tool_call_id"),
        (history(CALL, with_call(id="call_2")), "messages[2].tool_call_id"),
        (history(CALL, with_call(id="call_2"), name="clock"), "messages[2].tool_call_id"),
        (history(CALL, with_call(id="call_2"), name="watch"), "messages[2]"),
        (history(with_call(id=None), with_call(id=None)), "messages[2].tool_call_id"),
        ([*HELLO, {"role": "tool", "content": "noon"}], "messages[1]"),
        ([*HELLO, {"role": "tool", "content": "noon", "tool_call_id": "call_1"}], "messages[1].tool_call_id"),
        ([*HELLO, {"role": "assistant", "tool_calls": {}, "content": "", "function_call": {"name": "f"}}], None),
        ([*HELLO, {"role": "assistant", "tool_calls": "f"}], "messages[1].tool_calls"),
        ([*HELLO, {"role": "assistant", "tool_calls": {}}], "messages[1].tool_calls"),
        ([*history(CALL, with_call(id="call_2"), tool_call_id="call_1"), *HELLO], "messages[1].tool_calls[1]"),
        ([*history(CALL)[:2], {"role": "assistant", "content": "Noon."}], "messages[1].tool_calls[0]"),
        ([*history(CALL), {"role": "tool", "content": "x", "tool_call_id": CALL["id"]}], "messages[3].tool_call_id"),
    ],
)
async def test_a_wrong_history_is_a_400_that_names_the_place(messages: list[Any], param: str | None) -> None:
    async with running(says("Hello")) as api:
        error = await api.refused(PATH, {"messages": messages})
        assert error["param"] == (param or "messages[1].function_call")


async def test_results_are_linked_to_their_calls() -> None:
    second = {"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
    async with running(says("Hello")) as api:
        await api.ok(PATH, messages=[*history(CALL, second, name="clock"), {"role": "tool", "content": "sunny"}])
        _, called, noon, sunny = api.text.chats[0].messages
    assert called["tool_calls"][1]["function"] == {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    assert (noon["tool_call_id"], noon["name"]) == ("call_1", "clock")
    assert (sunny["tool_call_id"], sunny["name"]) == (called["tool_calls"][1]["id"], "get_weather")


@pytest.mark.parametrize("body", [{"functions": [{"name": "f"}]}, {"function_call": "auto"}])
async def test_the_older_form_of_tools_is_refused_with_the_newer_name(body: dict[str, Any]) -> None:
    async with running(says("Hello")) as api:
        error = await api.refused(PATH, {"messages": HELLO, **body})
        assert error["param"] in body
        assert "'tool" in error["message"]


async def test_tools_that_are_too_much_for_a_grammar_are_told_as_such() -> None:
    class Narrow(FakeText):
        async def check_grammar(self, grammar: Grammar) -> None:
            raise InvalidRequest("It is too long.", param="grammar")

    async with running(says("Hello"), Narrow()) as api:
        error = await api.refused(PATH, {"messages": HELLO, "tools": [CLOCK]})
    assert error["param"] == "tools"
    assert error["message"].startswith("'tools': ")
