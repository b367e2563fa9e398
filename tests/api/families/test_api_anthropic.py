"""`/v1/messages`: blocks in and out, the stream's events, and errors in Anthropic's shape whatever goes wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ggufd.errors import EngineFailure, QueueFull
from tests.support.fakes.api_client import Api, ring_of, running
from tests.support.fakes.fake_engine import FakeEngine, FakeState, FakeText

PATH = "/v1/messages"
USER = {"role": "user", "content": "Hi"}
ASK: dict[str, Any] = {"max_tokens": 50, "messages": [USER]}
ADD = {"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}
USE = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "2"}


async def refused(api: Api, body: Any, status: int = 400, path: str = PATH, **options: Any) -> dict[str, Any]:
    """The error object of a request that must be refused."""
    response = await api.post(path, body, **options)
    assert response.status_code == status, response.text
    assert set(response.json()) == {"type", "error"}
    assert response.json()["type"] == "error"
    error: dict[str, Any] = response.json()["error"]
    assert error["message"]
    return error


async def named_events(api: Api, **body: Any) -> list[tuple[str, dict[str, Any]]]:
    """The events of a stream with their names."""
    response = await api.post(PATH, {**ASK, "stream": True, **body})
    assert response.status_code == 200, response.text
    blocks = [block.split("\n") for block in response.text.split("\n\n") if block]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def sent(api: Api) -> tuple[Any, ...]:
    """What the template was given last."""
    return api.text.chats[-1].messages


async def test_a_message_is_answered() -> None:
    engine = FakeEngine(["Hello"])
    engine.cached_tokens = 3
    async with running(engine) as api:
        answer = await api.ok(PATH, **ASK, system="Be brief.", temperature=0.5, top_k=3)
    assert answer["content"] == [{"type": "text", "text": "Hello"}]
    assert (answer["type"], answer["role"], answer["model"]) == ("message", "assistant", "fake-model")
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("end_turn", None)
    prompt = len(api.engine.requests[0].prompt)
    assert answer["usage"]["input_tokens"] == prompt - 3
    assert (answer["usage"]["cache_read_input_tokens"], answer["usage"]["output_tokens"]) == (3, 5)
    assert sent(api) == ({"role": "system", "content": "Be brief."}, USER)
    sampling = api.engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_k, api.engine.requests[0].max_tokens) == (0.5, 3, 50)


async def test_why_it_stopped() -> None:
    async with running(FakeEngine(["One END"])) as api:
        stopped = await api.ok(PATH, **ASK, stop_sequences=["STOP", "END"])
        cut = await api.ok(PATH, **{**ASK, "max_tokens": 2})
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "END")
    assert stopped["content"][0]["text"] == "One "
    assert (cut["stop_reason"], cut["stop_sequence"]) == ("max_tokens", None)


async def test_a_call_that_was_made_already_ends_the_answer_unsaid() -> None:
    loop = 'So:<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>' * 50
    body = {**ASK, "max_tokens": 800, "tools": [ADD]}
    body["tool_choice"] = {"type": "auto", "disable_parallel_tool_use": False}
    async with running(FakeEngine([loop], n_ctx=1024)) as api:
        answer = await api.ok(PATH, **body)
        events = await named_events(api, **body)
        assert len(api.engine.finished) == 2
    assert [block["type"] for block in answer["content"]] == ["text", "tool_use", "text"]
    assert answer["content"][1]["input"] == {"a": 1}
    assert answer["stop_reason"] == "tool_use"
    assert answer["usage"]["output_tokens"] == len(loop) // 50 * 2 - len("}</tool_call>")
    starts = [event["content_block"]["type"] for name, event in events if name == "content_block_start"]
    assert starts == ["text", "tool_use", "text"]
    (last,) = [event for name, event in events if name == "message_delta"]
    assert (last["delta"]["stop_reason"], last["usage"]) == ("tool_use", answer["usage"])


async def test_a_call_that_a_stop_sequence_cut_is_none_to_be_made() -> None:
    call = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    async with running(FakeEngine([call], n_ctx=1024)) as api:
        cut = await api.ok(PATH, **ASK, tools=[ADD], stop_sequences=[": 1"])
        whole = await api.ok(PATH, **{**ASK, "max_tokens": 90}, tools=[ADD], stop_sequences=["</tool"])
    assert (cut["stop_reason"], cut["stop_sequence"]) == ("stop_sequence", ": 1")
    assert (whole["stop_reason"], whole["content"][0]["input"]) == ("tool_use", {"a": 1})


@pytest.mark.parametrize(
    ("choice", "parallel"),
    [
        ({}, None),
        ({"type": "auto"}, None),
        ({"type": "any", "disable_parallel_tool_use": None}, None),
        ({"type": "any", "disable_parallel_tool_use": False}, True),
        ({"type": "any", "disable_parallel_tool_use": True}, False),
    ],
)
async def test_whether_several_tools_may_be_used_is_told_apart_from_not_saying(
    choice: dict[str, Any], parallel: bool | None
) -> None:
    async with running(FakeEngine(["Hello"], n_ctx=1024)) as api:
        await api.ok(PATH, **ASK, tools=[ADD], tool_choice=choice)
        assert api.text.chats[0].parallel_tool_calls is parallel


async def test_the_stream_has_anthropics_order() -> None:
    engine = FakeEngine(["Hey"])
    engine.cached_tokens = 2
    async with running(engine) as api:
        events = await named_events(api)
    assert [name for name, _ in events] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert all(name == data["type"] for name, data in events)
    start, delta = events[0][1]["message"], events[-2][1]
    assert (start["content"], start["stop_reason"], start["usage"]["output_tokens"]) == ([], None, 0)
    assert delta["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert delta["usage"]["input_tokens"] + 2 == start["usage"]["input_tokens"]
    assert delta["usage"]["output_tokens"] == 3


async def test_a_stream_that_fails_ends_with_an_error_event() -> None:
    engine = FakeEngine(["Hello"])
    engine.error, engine.error_after = EngineFailure("It broke."), 2
    async with running(engine) as api:
        events = await named_events(api)
    assert events[-1] == ("error", {"type": "error", "error": {"type": "api_error", "message": "It broke."}})


async def test_blocks_become_messages() -> None:
    thinking = {"type": "thinking", "thinking": "Hm", "signature": "x"}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Add", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [thinking, {"type": "text", "text": "I add."}, USE]},
        {"role": "user", "content": [{"type": "text", "text": "And?"}, RESULT]},
    ]
    async with running(FakeEngine(n_ctx=2048)) as api:
        await api.ok(PATH, max_tokens=50, messages=messages, tools=[ADD], system=[{"type": "text", "text": "S"}])
    system, user, turn, result, again = sent(api)
    assert system["content"] == [{"type": "text", "text": "S"}]
    assert user["content"] == [{"type": "text", "text": "Add"}]
    assert (turn["content"], turn["reasoning_content"]) == ([{"type": "text", "text": "I add."}], "Hm")
    (call,) = turn["tool_calls"]
    assert call["id"] == result["tool_call_id"] == "toolu_1"
    assert (result["role"], result["content"]) == ("tool", "2")
    assert again == {"role": "user", "content": [{"type": "text", "text": "And?"}]}


async def test_a_document_of_text_is_text() -> None:
    sources = [
        {"type": "text", "media_type": "text/plain", "data": "Long."},
        {"type": "content", "content": "Longer."},
        {"type": "content", "content": [{"type": "text", "text": "Longest."}]},
    ]
    documents = [{"type": "document", "source": source} for source in sources]
    async with running() as api:
        await api.ok(PATH, max_tokens=5, messages=[{"role": "user", "content": documents}])
    assert [part["text"] for part in sent(api)[0]["content"]] == ["Long.", "Longer.", "Longest."]


@pytest.mark.parametrize(
    ("thinking", "kwargs"),
    [({"type": "disabled"}, {"enable_thinking": False}), ({"type": "adaptive"}, {}), ({"type": "between_tools"}, {})],
)
async def test_how_much_to_think_reaches_the_template(thinking: dict[str, str], kwargs: dict[str, bool]) -> None:
    async with running() as api:
        await api.ok(PATH, **ASK, thinking=thinking)
    assert api.text.chats[-1].template_kwargs == kwargs


async def test_the_last_message_of_the_assistant_is_continued() -> None:
    async with running() as api:
        await api.ok(PATH, max_tokens=5, messages=[USER, {"role": "assistant", "content": "Well"}])
    assert bytes(api.engine.requests[0].prompt).decode().endswith("assistant: Well")


async def test_a_schema_binds_the_answer() -> None:
    shape = {"type": "json_schema", "schema": {"type": "object"}}
    async with running(FakeEngine(["{}"])) as api:
        await api.ok(PATH, **ASK, output_config={"format": shape})
    grammar = api.engine.requests[0].sampling.grammar
    assert grammar is not None
    assert json.loads(grammar.text) == {"type": "object"}


async def test_tokens_are_counted_without_an_answer() -> None:
    async with running() as api:
        counted = await api.ok(f"{PATH}/count_tokens", messages=[USER], system="Be brief.")
        used = await api.ok(PATH, **ASK, system="Be brief.")
    assert counted == {"input_tokens": used["usage"]["input_tokens"]}
    assert len(api.engine.requests) == 1


async def test_keys_come_as_anthropics_clients_send_them() -> None:
    async with running(keys=ring_of("secret")) as api:
        assert (await refused(api, ASK, 401))["type"] == "authentication_error"
        assert (await api.post(PATH, ASK, headers={"x-api-key": "secret"})).status_code == 200


async def test_every_error_has_anthropics_shape() -> None:
    engine = FakeEngine()
    async with running(engine, max_body_bytes=100) as api:
        assert (await refused(api, {**ASK, "system": "x" * 200}, 413))["type"] == "request_too_large"
        assert (await refused(api, ASK, 404, f"{PATH}/batches"))["type"] == "not_found_error"
        got = await api.http.get(PATH)
        assert (got.status_code, got.json()["error"]["type"]) == (405, "invalid_request_error")
        engine.refusal = QueueFull("Full.", retry_after_s=7)
        full = await api.post(PATH, ASK)
        assert (full.status_code, full.headers["retry-after"]) == (503, "7")
        assert full.json()["error"]["type"] == "overloaded_error"
        engine.refusal, engine.error = None, RuntimeError("a fault of ours")
        assert (await refused(api, ASK, 500))["type"] == "api_error"
        engine.ready, engine.state = None, FakeState.LOADING
        for path in (PATH, f"{PATH}/count_tokens"):
            assert (await refused(api, ASK, 503, path))["type"] == "overloaded_error"


async def test_a_prompt_that_does_not_fit_is_the_messages_fault() -> None:
    async with running(FakeEngine(n_ctx=64)) as api:
        error = await refused(api, {"max_tokens": 5, "messages": [{"role": "user", "content": "x" * 100}]})
    assert error["param"] == "messages"


SAID = '<think>Hm</think>Ok <tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def thinking_api() -> Any:
    return running(FakeEngine([SAID], n_ctx=4096), FakeText(template="<think>"))


async def test_thoughts_texts_and_calls_are_blocks() -> None:
    async with thinking_api() as api:
        answer = await api.ok(PATH, **{**ASK, "max_tokens": 500}, tools=[ADD])
    thought, text, call = answer["content"]
    assert (thought["type"], thought["thinking"], text) == ("thinking", "Hm", {"type": "text", "text": "Ok"})
    assert thought["signature"]
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "add", {"a": 1})
    assert answer["stop_reason"] == "tool_use"
    assert 0 < answer["usage"]["output_tokens_details"]["thinking_tokens"] < answer["usage"]["output_tokens"]


async def test_what_was_answered_can_be_sent_back() -> None:
    async with thinking_api() as api:
        answer = await api.ok(PATH, **{**ASK, "max_tokens": 500}, tools=[ADD])
        result = {"type": "tool_result", "tool_use_id": answer["content"][2]["id"], "content": "2"}
        back = [USER, {"role": "assistant", "content": answer["content"]}, {"role": "user", "content": [result]}]
        await api.ok(PATH, max_tokens=500, messages=back, tools=[ADD])
    turn = sent(api)[1]
    assert (turn["reasoning_content"], turn["tool_calls"][0]["id"]) == ("Hm", result["tool_use_id"])


async def test_a_streamed_call_is_blocks_too() -> None:
    async with thinking_api() as api:
        events = await named_events(api, max_tokens=500, tools=[ADD])
    opened = [data["content_block"]["type"] for name, data in events if name == "content_block_start"]
    assert opened == ["thinking", "text", "tool_use"]
    arguments = "".join(data["delta"].get("partial_json", "") for name, data in events if name == "content_block_delta")
    assert json.loads(arguments) == {"a": 1}
    assert events[-2][1]["delta"]["stop_reason"] == "tool_use"


def user(*blocks: Any) -> dict[str, Any]:
    return {"max_tokens": 5, "messages": [{"role": "user", "content": list(blocks)}]}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"max_tokens": 5, "messages": [USER, {"role": "assistant", "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [USER]}, "max_tokens"),
        ({"max_tokens": 0, "messages": [USER]}, "max_tokens"),
        ({"max_tokens": 5}, "messages"),
        ({"max_tokens": 5, "messages": []}, "messages"),
        ({"max_tokens": 5, "messages": "Hi"}, "messages"),
        ({"max_tokens": 5, "messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"max_tokens": 5, "messages": [{"role": "user"}]}, "messages[0].content"),
        (user("x"), "messages[0].content[0].type"),
        (user({"type": "image", "source": {}}), "messages[0].content[0].source"),
        (user({"type": "document", "source": {"type": "base64"}}), "messages[0].content[0]"),
        (user({"type": "text"}), "messages[0].content[0].text"),
        (user({"type": "tool_result"}), "messages[0].content[0].tool_use_id"),
        (user(RESULT), "messages[0].content[0].tool_use_id"),
        (user({**RESULT, "content": [{"type": "image"}]}), "messages[0].content[0].content[0].source"),
        (user({"type": "thinking", "thinking": "x"}), "messages[0].content[0].type"),
        (assistant({**USE, "input": "x"}), "messages[1].content[0].input"),
        (assistant({**USE, "id": 3}), "messages[1].content[0].id"),
        (assistant({"type": "server_tool_use"}), "messages[1].content[0].type"),
        ({**ASK, "system": 3}, "system"),
        ({**ASK, "system": [{"type": "image"}]}, "system[0].source"),
        ({**ASK, "tools": ["x"]}, "tools[0]"),
        ({**ASK, "tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({**ASK, "tools": [{"name": "x"}]}, "tools[0].input_schema"),
        ({**ASK, "tools": [{**ADD, "name": "a b"}]}, "tools[0].name"),
        ({**ASK, "tools": [{**ADD, "input_schema": {"type": "array"}}]}, "tools[0].input_schema"),
        ({**ASK, "tools": [ADD], "tool_choice": {"type": "perhaps"}}, "tool_choice.type"),
        ({**ASK, "tools": [ADD], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({**ASK, "tools": [ADD], "tool_choice": {"type": "tool", "name": "sub"}}, "tool_choice"),
        ({**ASK, "tool_choice": {"type": "any"}}, "tool_choice"),
        ({**ASK, "thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({**ASK, "thinking": {"type": "enabled", "budget_tokens": "many"}}, "thinking.budget_tokens"),
        ({**ASK, "thinking": {"type": "deep"}}, "thinking.type"),
        ({**ASK, "output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        (
            {**ASK, "tools": [ADD], "tool_choice": {"type": "any", "disable_parallel_tool_use": 1}},
            "tool_choice.disable_parallel_tool_use",
        ),
        ({**ASK, "output_config": {"effort": "all"}}, "output_config.effort"),
        ({**ASK, "output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({**ASK, "stop_sequences": "x", "temperature": "hot"}, "temperature"),
        ({**ASK, "stop_sequences": [3]}, "stop_sequences[0]"),
        ({**ASK, "mcp_servers": [{"url": "x"}]}, "mcp_servers"),
    ],
)
async def test_bad_input_is_named(body: dict[str, Any], param: str) -> None:
    async with running() as api:
        error = await refused(api, body)
        assert api.engine.requests == []
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


async def test_a_conversation_to_be_held_here_is_refused_in_the_way_that_clients_go_on_from() -> None:
    async with running() as api:
        error = await refused(api, {**ASK, "thread": {"type": "create"}})
    assert error["param"] == "thread"
    assert error["details"]["error_code"] == "thread_unsupported_request"


async def test_the_id_of_a_request_is_where_anthropics_clients_look_for_it() -> None:
    async with running() as api:
        for body, status in ((ASK, 200), ({}, 400)):
            response = await api.post(PATH, body)
            assert response.status_code == status
            assert response.headers["request-id"] == response.headers["x-request-id"] != ""
        assert "request-id" not in (await api.http.get("/v1/models")).headers
