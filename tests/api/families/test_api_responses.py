"""`/v1/responses`: items in and out, the stream's events, what is kept for whom, and what bad input gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ggufd.errors import EngineFailure
from tests.support.fakes.api_client import Api, error_of, ring_of, running
from tests.support.fakes.fake_engine import FakeEngine, FakeText

PATH = "/v1/responses"
USER = {"role": "user", "content": "Hi"}
ADD = {"type": "function", "name": "add", "parameters": {"type": "object"}}
CALL = {"type": "function_call", "call_id": "call_1", "name": "add", "arguments": '{"a": 1}'}
RESULT = {"type": "function_call_output", "call_id": "call_1", "output": "2"}


async def named_events(api: Api, **body: Any) -> list[tuple[str, dict[str, Any]]]:
    """The events of a stream with their names."""
    response = await api.post(PATH, {"stream": True, **body})
    assert response.status_code == 200, response.text
    blocks = [block for block in response.text.split("\n\n") if block and not block.startswith(":")]
    pairs = [block.split("\n") for block in blocks]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in pairs]


def sent(api: Api) -> tuple[Any, ...]:
    """What the template was given last."""
    return api.text.chats[-1].messages


async def test_a_text_is_answered_with_a_message() -> None:
    async with running(FakeEngine(["Hello"])) as api:
        response = await api.ok(PATH, input="Hi", instructions="Be brief.", temperature=0.5, metadata={"a": "b"})
    (item,) = response["output"]
    assert item["content"] == [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}]
    assert (response["object"], response["status"], response["model"]) == ("response", "completed", "fake-model")
    assert response["usage"]["output_tokens"] == 5
    assert response["usage"]["total_tokens"] == response["usage"]["input_tokens"] + 5
    assert response["error"] is response["incomplete_details"] is None
    echo = {"instructions": "Be brief.", "temperature": 0.5, "metadata": {"a": "b"}, "store": True, "tools": []}
    assert {name: response[name] for name in echo} == echo
    assert sent(api) == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})


async def test_cached_tokens_are_told() -> None:
    engine = FakeEngine()
    engine.cached_tokens = 7
    async with running(engine) as api:
        usage = (await api.ok(PATH, input="Hi"))["usage"]
    assert usage["input_tokens_details"]["cached_tokens"] == 7


async def test_an_answer_that_met_its_limit_is_incomplete() -> None:
    async with running(FakeEngine(["Hello"])) as api:
        response = await api.ok(PATH, input="Hi", max_output_tokens=2)
    assert response["status"] == response["output"][0]["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert api.engine.requests[0].max_tokens == 2


LOOP = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>' * 50


async def test_a_call_that_was_made_already_ends_the_answer_unsaid() -> None:
    async with running(FakeEngine([LOOP], n_ctx=1024)) as api:
        response = await api.ok(PATH, input="Hi", tools=[ADD], parallel_tool_calls=True)
        events = await named_events(api, input="Hi", tools=[ADD], parallel_tool_calls=True)
        assert len(api.engine.finished) == 2
    name, last = events[-1]
    assert name == "response.completed"
    for told in (response, last["response"]):
        assert told["status"] == "completed"
        assert [(item["type"], item["status"], item["arguments"]) for item in told["output"]] == [
            ("function_call", "completed", '{"a": 1}')
        ]
        assert told["usage"]["output_tokens"] == len(LOOP) // 50 * 2 - len("}</tool_call>")
    assert sum(name == "response.output_item.added" for name, _ in events) == 1


@pytest.mark.parametrize(("sent", "told"), [({}, False), ({"parallel_tool_calls": True}, True)])
async def test_how_many_calls_are_made_is_told_where_the_request_does_not_say(sent: dict[str, Any], told: bool) -> None:
    async with running(FakeEngine(["Hello"], n_ctx=1024)) as api:
        response = await api.ok(PATH, input="Hi", tools=[ADD], **sent)
        assert api.text.chats[0].parallel_tool_calls is sent.get("parallel_tool_calls")
    assert response["parallel_tool_calls"] is told


async def test_the_stream_has_openais_order_and_numbers() -> None:
    async with running(FakeEngine(["Hey"])) as api:
        events = await named_events(api, input="Hi")
        kept = (await api.http.get(f"{PATH}/{events[0][1]['response']['id']}")).json()
    assert [name.removeprefix("response.") for name, _ in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 3,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert all(name == data["type"] for name, data in events)
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    assert [data["response"]["status"] for name, data in events if "response" in data] == [
        "in_progress",
        "in_progress",
        "completed",
    ]
    assert events[-1][1]["response"] == kept
    assert kept["output"][0] == events[-2][1]["item"]


async def test_a_stream_that_met_its_limit_ends_incomplete() -> None:
    async with running(FakeEngine(["Hello"])) as api:
        events = await named_events(api, input="Hi", max_output_tokens=2)
    assert events[-1][0] == "response.incomplete"
    assert events[-1][1]["response"]["output"][0]["content"][0]["text"] == "He"


async def test_a_stream_that_fails_says_so_twice() -> None:
    """Once as the state of the response, and once in the shape at which the `openai` client raises."""
    engine = FakeEngine(["Hello"])
    engine.error, engine.error_after = EngineFailure("It broke."), 2
    async with running(engine) as api:
        events = await named_events(api, input="Hi")
        response = events[-2][1]["response"]
        assert (events[-2][0], response["status"]) == ("response.failed", "failed")
        assert response["error"] == {"code": "server_error", "message": "It broke."}
        assert response["output"][0]["content"][0]["text"] == "He"
        assert events[-1][1]["error"]["message"] == events[-1][1]["message"] == "It broke."
        error_of(await api.http.get(f"{PATH}/{response['id']}"), 404)


async def test_logprobs_are_in_the_part_and_in_the_deltas() -> None:
    async with running(FakeEngine(["Hi"])) as api:
        whole = await api.ok(PATH, input="Hi", top_logprobs=2)
        events = await named_events(api, input="Hi", include=["message.output_text.logprobs"])
    entries = whole["output"][0]["content"][0]["logprobs"]
    assert [entry["token"] for entry in entries] == ["H", "i"]
    assert len(entries[0]["top_logprobs"]) == 2
    assert whole["top_logprobs"] == 2
    deltas = [data["logprobs"] for name, data in events if name.endswith("text.delta")]
    assert [entry["token"] for entries in deltas for entry in entries] == ["H", "i"]


async def test_every_sampler_is_taken_here_too() -> None:
    async with running() as api:
        await api.ok(PATH, input="Hi", min_p=0.1, dry_multiplier=0.8, banned_strings=["x"], stop=["END"], seed=7)
    request = api.engine.requests[0]
    assert (request.sampling.min_p, request.sampling.dry_multiplier, request.sampling.seed) == (0.1, 0.8, 7)
    assert (request.banned_strings, request.stop) == (("x",), ("END",))


async def test_a_turn_of_several_items_is_one_message() -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]}
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I add."}]}
    async with running() as api:
        await api.ok(PATH, input=[USER, thought, said, CALL, RESULT], tools=[ADD])
    user, turn, result = sent(api)
    assert (user["role"], turn["role"], result["role"]) == ("user", "assistant", "tool")
    assert turn["reasoning_content"] == "Hm"
    assert turn["content"] == [{"type": "text", "text": "I add."}]
    assert turn["tool_calls"][0]["id"] == result["tool_call_id"] == "call_1"


async def test_two_answers_in_a_row_stay_two_messages() -> None:
    answer = {"role": "assistant", "content": "A"}
    async with running() as api:
        await api.ok(PATH, input=[answer, answer, USER])
    assert [message["role"] for message in sent(api)] == ["assistant", "assistant", "user"]


async def test_a_schema_binds_the_answer() -> None:
    shape = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
    async with running(FakeEngine(["{}"])) as api:
        response = await api.ok(PATH, input="Hi", text={"format": shape})
    grammar = api.engine.requests[0].sampling.grammar
    assert grammar is not None
    assert json.loads(grammar.text) == {"type": "object"}
    assert response["text"]["format"] == shape


async def test_going_on_from_a_response() -> None:
    async with running(FakeEngine(["Yes"])) as api:
        first = await api.ok(PATH, input="One?", instructions="Old.")
        second = await api.ok(PATH, input="Two?", previous_response_id=first["id"])
        third = await api.ok(PATH, input=[USER], previous_response_id=second["id"], instructions="New.")
        listed = (await api.http.get(f"{PATH}/{third['id']}/input_items", params={"order": "asc"})).json()
    roles = [message["role"] for message in sent(api)]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    assert sent(api)[0]["content"] == "New."
    assert third["previous_response_id"] == second["id"]
    texts = [item["content"][0]["text"] for item in listed["data"]]
    assert texts == ["One?", "Yes", "Two?", "Yes", "Hi"]


async def test_an_incomplete_answer_goes_on_without_new_input() -> None:
    async with running(FakeEngine(["Hello"])) as api:
        first = await api.ok(PATH, input="Hi", max_output_tokens=2)
        await api.ok(PATH, previous_response_id=first["id"])
    assert sent(api)[-1] == {"role": "assistant", "content": [{"type": "text", "text": "He"}]}


async def test_an_item_may_be_named_by_its_id() -> None:
    async with running(FakeEngine(["Yes"])) as api:
        item = (await api.ok(PATH, input="One?"))["output"][0]
        await api.ok(PATH, input=[USER, {"type": "item_reference", "id": item["id"]}, USER])
        assert [message["content"] for message in sent(api)][1] == [{"type": "text", "text": "Yes"}]
        error = await api.refused(PATH, {"input": [USER, {"id": "msg_none"}]}, 404)
    assert error["param"] == "input[1].id"


async def test_what_is_not_to_be_stored_is_not() -> None:
    async with running() as api:
        response = await api.ok(PATH, input="Hi", store=False)
        assert response["store"] is False
        error = await api.refused(PATH, {"input": "Hi", "previous_response_id": response["id"]}, 404)
    assert error["param"] == "previous_response_id"


async def test_a_deleted_response_is_gone() -> None:
    async with running() as api:
        path = f"{PATH}/{(await api.ok(PATH, input='Hi'))['id']}"
        assert (await api.http.get(path)).status_code == 200
        assert (await api.http.delete(path)).json()["deleted"] is True
        for response in (
            await api.http.get(path),
            await api.http.delete(path),
            await api.http.get(f"{path}/input_items"),
        ):
            error_of(response, 404)


async def test_a_response_is_for_the_key_that_made_it() -> None:
    mine, yours = ({"Authorization": f"Bearer {key}"} for key in ("a", "b"))
    async with running(keys=ring_of("a", "b")) as api:
        response_id = (await api.post(PATH, {"input": "Hi"}, headers=mine)).json()["id"]
        path = f"{PATH}/{response_id}"
        for address in (path, f"{path}/input_items"):
            assert (await api.http.get(address, headers=mine)).status_code == 200
            error_of(await api.http.get(address, headers=yours), 404)
        error_of(await api.http.delete(path, headers=yours), 404)
        going_on = {"input": "And?", "previous_response_id": response_id}
        assert error_of(await api.post(PATH, going_on, headers=yours), 404)["param"] == "previous_response_id"
        assert (await api.post(PATH, going_on, headers=mine)).status_code == 200
        assert error_of(await api.http.get(path, params={"stream": "true"}, headers=mine), 400)["param"] == "stream"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_a_limit_under_the_name_that_other_apis_have_is_one(name: str) -> None:
    async with running() as api:
        response = await api.ok(PATH, input="Hi", **{name: 2})
    assert (response["status"], response["max_output_tokens"]) == ("incomplete", 2)


async def test_items_of_one_id_are_listed_each_once() -> None:
    async with running() as api:
        path = f"{PATH}/{(await api.ok(PATH, input=[{**USER, 'id': 'm'}] * 3))['id']}/input_items"
        query, listed = {"order": "asc", "limit": 1}, []
        for _ in range(3):
            page = (await api.http.get(path, params=query)).json()
            listed += [item["id"] for item in page["data"]]
            query["after"] = listed[-1]
    assert listed[0] == "m"
    assert (len(set(listed)), page["has_more"]) == (3, False)


async def test_input_items_come_in_pages() -> None:
    async with running() as api:
        path = f"{PATH}/{(await api.ok(PATH, input=[USER, USER, USER]))['id']}/input_items"
        first = (await api.http.get(path, params={"limit": 2})).json()
        rest = (await api.http.get(path, params={"limit": 2, "after": first["last_id"]})).json()
        for wrong in ({"limit": "0"}, {"limit": "x"}, {"order": "up"}):
            assert error_of(await api.http.get(path, params=wrong), 400)["param"] == next(iter(wrong))
        error_of(await api.http.get(path, params={"after": "msg_none"}), 404)
    assert [len(page["data"]) for page in (first, rest)] == [2, 1]
    assert [page["has_more"] for page in (first, rest)] == [True, False]


async def test_a_file_keeps_responses_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite"
    async with running(FakeEngine(["Yes"]), responses_path=path) as api:
        first = await api.ok(PATH, input="Hi")
    async with running(responses_path=path) as api:
        await api.ok(PATH, input="And?", previous_response_id=first["id"])
    assert [message["role"] for message in sent(api)] == ["user", "assistant", "user"]


async def test_tokens_are_counted_without_an_answer() -> None:
    async with running() as api:
        counted = await api.ok(f"{PATH}/input_tokens", input="Hi", instructions="Be brief.")
        used = await api.ok(PATH, input="Hi", instructions="Be brief.")
    assert counted == {"object": "response.input_tokens", "input_tokens": used["usage"]["input_tokens"]}
    assert len(api.engine.requests) == 1


SAID = '<think>Hm</think>Ok <tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def thinking_api() -> Any:
    return running(FakeEngine([SAID], n_ctx=4096), FakeText(template="<think>"))


async def test_thoughts_texts_and_calls_are_items() -> None:
    async with thinking_api() as api:
        response = await api.ok(PATH, input="Hi", tools=[ADD])
    thought, message, call = response["output"]
    assert (thought["type"], thought["content"][0]["text"]) == ("reasoning", "Hm")
    assert (message["type"], message["content"][0]["text"]) == ("message", "Ok")
    assert (call["type"], call["name"], json.loads(call["arguments"])) == ("function_call", "add", {"a": 1})
    details = response["usage"]["output_tokens_details"]
    assert 0 < details["reasoning_tokens"] < response["usage"]["output_tokens"]


async def test_a_result_goes_on_from_a_stored_call() -> None:
    async with thinking_api() as api:
        first = await api.ok(PATH, input="Hi", tools=[ADD])
        result = {**RESULT, "call_id": first["output"][2]["call_id"]}
        await api.ok(PATH, input=[result], tools=[ADD], previous_response_id=first["id"])
    _, turn, tool = sent(api)
    assert (turn["reasoning_content"], turn["tool_calls"][0]["id"]) == ("Hm", tool["tool_call_id"])


async def test_a_call_that_a_stop_string_cut_is_incomplete() -> None:
    async with thinking_api() as api:
        cut = await api.ok(PATH, input="Hi", tools=[ADD], stop=[": 1"])
        whole = await api.ok(PATH, input="Hi", tools=[ADD], stop=["</tool"])
        events = await named_events(api, input="Hi", tools=[ADD], stop=[": 1"])
    assert [item["status"] for item in cut["output"]] == ["completed", "completed", "incomplete"]
    assert cut["output"][2]["arguments"] == '{"a"'
    assert [item["status"] for item in whole["output"]] == ["completed"] * 3
    done = [data["item"] for name, data in events if name == "response.output_item.done"]
    assert [item["status"] for item in done] == ["completed", "completed", "incomplete"]


async def test_a_streamed_call_is_items_too() -> None:
    async with thinking_api() as api:
        events = await named_events(api, input="Hi", tools=[ADD])
    added = [data["item"]["type"] for name, data in events if name == "response.output_item.added"]
    assert added == ["reasoning", "message", "function_call"]
    arguments = [data["delta"] for name, data in events if name == "response.function_call_arguments.delta"]
    assert json.loads("".join(arguments)) == {"a": 1}


def long_chat(n_turns: int) -> list[dict[str, str]]:
    turns = [
        [{"role": "user", "content": f"Question {n}"}, {"role": "assistant", "content": "x" * 20}]
        for n in range(n_turns)
    ]
    return [message for turn in turns for message in turn] + [USER]


async def test_truncation_drops_the_beginning_and_keeps_a_quarter_free() -> None:
    body = {"instructions": "Be brief.", "input": long_chat(30)}
    async with running(FakeEngine(["ok"], n_ctx=512)) as api:
        assert (await api.refused(PATH, body))["code"] == "context_length_exceeded"
        response = await api.post(PATH, {**body, "truncation": "auto"})
        assert response.status_code == 200
        assert response.headers["x-ggufd-truncated"].endswith(" messages")
    prompt = api.engine.requests[-1].prompt
    assert 512 * 0.6 < len(prompt) <= 512 * 0.75
    text = bytes(prompt).decode()
    assert text.startswith("system: Be brief.\nuser: Question")
    assert text.endswith("user: Hi\nassistant: ")


async def test_truncation_cannot_help_a_single_long_message() -> None:
    async with running(FakeEngine(n_ctx=128)) as api:
        error = await api.refused(PATH, {"input": "x" * 500, "truncation": "auto"})
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": [{"role": "nobody", "content": "x"}]}, "input[0].role"),
        ({"input": [USER, {"role": "user"}]}, "input[1].content"),
        ({"input": [{"type": "nothing"}]}, "input[0].type"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].image_url"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call", "name": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "x"}]}, "input[0].output"),
        ({"input": [{"type": "reasoning", "content": [1]}]}, "input[0].content[0]"),
        ({"input": [{"type": "item_reference", "id": 3}]}, "input[0].id"),
        ({"input": [USER, RESULT]}, "input[1].call_id"),
        ({"input": [USER, {**CALL, "arguments": "[1"}]}, "input[1].arguments"),
        ({"input": "x", "instructions": 3}, "instructions"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "temperature": "hot"}, "temperature"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "x", "tools": ["x"]}, "tools[0]"),
        ({"input": "x", "tools": [{"type": "function", "name": ""}]}, "tools[0].name"),
        ({"input": "x", "tools": [{**ADD, "parameters": []}, ADD]}, "tools[1].name"),
        ({"input": "x", "tools": [{**ADD, "parameters": 3}]}, "tools[0].parameters"),
        ({"input": "x", "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"input": "x", "tool_choice": "perhaps"}, "tool_choice"),
        ({"input": "x", "tools": [ADD], "tool_choice": {"type": "function", "name": "sub"}}, "tool_choice"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice"),
        ({"input": "x", "text": "json"}, "text"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"input": "x", "text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"input": "x", "text": {"format": {"type": "json_schema", "schema": {"type": "nonsense"}}}}, "text.format"),
        ({"input": "x", "reasoning": {"effort": "maximal"}}, "reasoning.effort"),
        ({"input": "x", "include": ["everything"]}, "include[0]"),
        ({"input": "x", "metadata": {"a": 3}}, "metadata"),
        ({"input": "x", "truncation": "some"}, "truncation"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "conversation": "conv_1"}, "conversation"),
        ({"input": "x", "prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"input": "x", "top_logprobs": -1}, "top_logprobs"),
        ({"input": "x", "store": "yes"}, "store"),
    ],
)
async def test_bad_input_is_named(body: dict[str, Any], param: str) -> None:
    async with running(text=FakeText()) as api:
        error = await api.refused(PATH, body)
        assert api.engine.requests == []
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
