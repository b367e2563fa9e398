"""Pieces of an answer become OpenAI's events in their order, and the items that they announce."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.api.answer.blocks import Event
from ggufd.api.openai.responses.output import ResponseItems
from ggufd.chat.deltas.answer import Answer, ContentDelta, Delta, ReasoningDelta, ToolArgumentsDelta, ToolCallBegin

THINKING: list[Delta] = [ReasoningDelta("Hm"), ReasoningDelta("m.")]
TEXT: list[Delta] = [ContentDelta("Hel"), ContentDelta("lo")]
CALL: list[Delta] = [ToolCallBegin(0, "call_1", "add"), ToolArgumentsDelta(0, '{"a":'), ToolArgumentsDelta(0, "1}")]


def written(deltas: list[Delta], *, is_cut: bool = False) -> tuple[list[Event], list[dict[str, Any]]]:
    output = ResponseItems()
    events = [event for delta in deltas for event in output.feed(delta)]
    return events + output.finish(is_cut=is_cut), output.blocks


def kinds(events: list[Event]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_a_text_is_an_item_with_one_part() -> None:
    events, items = written(TEXT)
    assert kinds(events) == [
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
    ]
    assert events[0]["item"]["content"] == []
    assert events[0]["item"]["status"] == "in_progress"
    assert events[1]["part"] == {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    assert events[-1]["item"] == items[0]
    assert items[0]["content"][0]["text"] == "Hello"


def test_thoughts_come_as_their_own_item_with_their_own_events() -> None:
    events, items = written([*THINKING, *TEXT])
    assert [item["type"] for item in items] == ["reasoning", "message"]
    assert items[0]["content"] == [{"type": "reasoning_text", "text": "Hmm."}]
    assert items[0]["summary"] == []
    assert kinds(events).count("reasoning_text.delta") == 2
    assert kinds(events).index("output_item.done") < kinds(events).index("output_text.delta")


def test_a_call_tells_its_name_first_and_its_arguments_piece_by_piece() -> None:
    events, items = written(CALL)
    assert kinds(events) == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    assert (events[0]["item"]["name"], events[0]["item"]["call_id"]) == ("add", "call_1")
    assert events[0]["item"]["arguments"] == ""
    assert (events[3]["name"], events[3]["arguments"]) == ("add", '{"a":1}')
    assert items[0]["arguments"] == '{"a":1}'


def test_logprobs_are_in_the_delta_and_in_the_part() -> None:
    output = ResponseItems()
    entry = {"token": "a", "logprob": -1.0}
    events = [*output.feed(ContentDelta("a"), [entry]), *output.feed(ContentDelta("b")), *output.finish(is_cut=False)]
    deltas = [event["logprobs"] for event in events if event["type"].endswith("output_text.delta")]
    assert deltas == [[entry], []]
    assert output.blocks[0]["content"][0]["logprobs"] == [entry]


def test_an_empty_answer_is_an_empty_message() -> None:
    _, items = written([])
    assert [(item["type"], item["content"][0]["text"]) for item in items] == [("message", "")]


@pytest.mark.parametrize("deltas", [TEXT, CALL, THINKING])
def test_what_was_cut_is_incomplete(deltas: list[Delta]) -> None:
    _, items = written(deltas, is_cut=True)
    assert items[-1]["status"] == "incomplete"


def pieces(text: str, kind: Any) -> list[Delta]:
    return [kind(character) for character in text]


@st.composite
def answers(draw: st.DrawFn) -> list[Delta]:
    """Answers as a parser may tell them: parts in any order, one character at a time."""
    deltas: list[Delta] = []
    n_calls = 0
    for part in draw(st.lists(st.sampled_from(["text", "thought", "call"]), max_size=6)):
        text = draw(st.text(min_size=part != "call", max_size=5))
        if part == "call":
            deltas.append(ToolCallBegin(n_calls, f"call_{n_calls}", "f"))
            call = n_calls
            deltas += [ToolArgumentsDelta(call, character) for character in text]
            n_calls += 1
        else:
            deltas += pieces(text, ContentDelta if part == "text" else ReasoningDelta)
    return deltas


@given(answers())
def test_events_add_up_to_the_items_and_the_items_to_the_answer(deltas: list[Delta]) -> None:
    events, items = written(deltas)
    assert rebuilt(events) == items
    answer = Answer.of(deltas)
    assert text_of(items, "message") == answer.content
    assert text_of(items, "reasoning") == answer.reasoning
    calls = [(item["call_id"], item["arguments"]) for item in items if item["type"] == "function_call"]
    assert calls == [(call.call_id, call.arguments) for call in answer.calls]
    assert all(item["status"] == "completed" for item in items if item["type"] != "function_call")
    assert len({item["id"] for item in items}) == len(items)


def text_of(items: list[dict[str, Any]], kind: str) -> str:
    return "".join(part["text"] for item in items if item["type"] == kind for part in item["content"])


def rebuilt(events: list[Event]) -> list[dict[str, Any]]:
    """The items as a client puts them together from the events, which must come in an order that allows it."""
    items: list[dict[str, Any]] = []
    is_open = False
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert not is_open
            assert event["output_index"] == len(items)
            items.append(dict(event["item"]))
            is_open = True
            continue
        assert is_open
        assert event["output_index"] == len(items) - 1
        item = items[-1]
        if kind == "content_part.added":
            assert item["content"] == []
            item["content"] = [dict(event["part"])]
        elif kind in ("output_text.delta", "reasoning_text.delta"):
            item["content"][event["content_index"]]["text"] += event["delta"]
        elif kind == "function_call_arguments.delta":
            item["arguments"] += event["delta"]
        elif kind == "output_item.done":
            is_open = False
            assert {**item, "status": event["item"]["status"]} == event["item"]
            items[-1] = event["item"]
    assert not is_open
    return items
