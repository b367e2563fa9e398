"""Pieces of an answer become Anthropic's events in their order, and the content blocks that they announce."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ggufd.api.answer.blocks import Event
from ggufd.api.anthropic.output import ContentBlocks, signature
from ggufd.chat.deltas.answer import Answer, ContentDelta, Delta, ReasoningDelta, ToolArgumentsDelta, ToolCallBegin

THINKING: list[Delta] = [ReasoningDelta("Hm"), ReasoningDelta("m.")]
TEXT: list[Delta] = [ContentDelta("Hel"), ContentDelta("lo")]
CALL: list[Delta] = [ToolCallBegin(0, "call_1", "add"), ToolArgumentsDelta(0, '{"a":'), ToolArgumentsDelta(0, "1}")]


def written(deltas: list[Delta]) -> tuple[list[Event], list[dict[str, Any]]]:
    content = ContentBlocks()
    events = [event for delta in deltas for event in content.feed(delta)]
    return events + content.close(), content.blocks


def kinds(events: list[Event]) -> list[str]:
    return [event.get("delta", event)["type"] for event in events]


def test_a_text_is_one_block() -> None:
    events, blocks = written(TEXT)
    assert kinds(events) == ["content_block_start", "text_delta", "text_delta", "content_block_stop"]
    assert blocks == [{"type": "text", "text": "Hello"}]


def test_a_thought_is_signed_at_its_end() -> None:
    events, blocks = written([*THINKING, *TEXT])
    assert kinds(events)[:5] == [
        "content_block_start",
        "thinking_delta",
        "thinking_delta",
        "signature_delta",
        "content_block_stop",
    ]
    assert blocks[0] == {"type": "thinking", "thinking": "Hmm.", "signature": signature("Hmm.")}
    assert [event["index"] for event in events] == [0] * 5 + [1] * 4


def test_a_call_begins_empty_and_ends_with_its_input() -> None:
    events, blocks = written(CALL)
    assert events[0]["content_block"] == {"type": "tool_use", "id": "call_1", "name": "add", "input": {}}
    assert "".join(event["delta"]["partial_json"] for event in events[1:-1]) == '{"a":1}'
    assert blocks[0]["input"] == {"a": 1}


def test_of_a_call_that_was_cut_nothing_is_made_up() -> None:
    _, blocks = written(CALL[:-1])
    assert blocks[0]["input"] == {}


def test_nothing_is_nothing() -> None:
    assert written([]) == ([], [])


@st.composite
def answers(draw: st.DrawFn) -> list[Delta]:
    """Answers as a parser may tell them: parts in any order, one character at a time."""
    deltas: list[Delta] = []
    n_calls = 0
    for part in draw(st.lists(st.sampled_from([ContentDelta, ReasoningDelta, ToolCallBegin]), max_size=6)):
        if part is ToolCallBegin:
            text = json.dumps(draw(st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)))
            deltas.append(ToolCallBegin(n_calls, f"call_{n_calls}", "f"))
            deltas += [ToolArgumentsDelta(n_calls, character) for character in text]
            n_calls += 1
        else:
            deltas += [part(character) for character in draw(st.text(min_size=1, max_size=5))]
    return deltas


@given(answers())
def test_events_add_up_to_the_blocks_and_the_blocks_to_the_answer(deltas: list[Delta]) -> None:
    events, blocks = written(deltas)
    assert rebuilt(events) == blocks
    answer = Answer.of(deltas)
    assert "".join(block.get("text", "") for block in blocks) == answer.content
    assert "".join(block.get("thinking", "") for block in blocks) == answer.reasoning
    calls = [(block["id"], block["input"]) for block in blocks if block["type"] == "tool_use"]
    assert calls == [(call.call_id, json.loads(call.arguments)) for call in answer.calls]


def rebuilt(events: list[Event]) -> list[dict[str, Any]]:
    """The blocks as a client puts them together from the events, which must come in an order that allows it."""
    blocks: list[dict[str, Any]] = []
    arguments = ""
    is_open = False
    for event in events:
        if event["type"] == "content_block_start":
            assert not is_open
            assert event["index"] == len(blocks)
            blocks.append(dict(event["content_block"]))
            arguments, is_open = "", True
            continue
        assert is_open
        assert event["index"] == len(blocks) - 1
        match event.get("delta"):
            case {"type": "text_delta", "text": text}:
                blocks[-1]["text"] += text
            case {"type": "thinking_delta", "thinking": text}:
                blocks[-1]["thinking"] += text
            case {"type": "signature_delta", "signature": text}:
                blocks[-1]["signature"] = text
            case {"type": "input_json_delta", "partial_json": text}:
                arguments += text
            case None:
                is_open = False
                if blocks[-1]["type"] == "tool_use":
                    blocks[-1]["input"] = json.loads(arguments)
    assert not is_open
    return blocks
