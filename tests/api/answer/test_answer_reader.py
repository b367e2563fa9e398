"""One choice as the API reads it: tokens that come together count as they would one by one."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from ggufd.api.answer.reader import AnswerReader
from ggufd.chat.answers.parser import AnswerParser
from ggufd.chat.deltas.answer import Answer, ContentDelta, ReasoningDelta, ToolArgumentsDelta, ToolCallBegin
from ggufd.chat.prompt import AnswerFormat
from ggufd.engine.messages.events import Finish, FinishReason, Output, Usage

CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
THOUGHTS = "<think>Let us see.</think>"
ANSWERS = (f"{THOUGHTS}So.", f"{THOUGHTS}{CALL}", f"{THOUGHTS}{CALL}{CALL}{CALL}", THOUGHTS, "None.")
FORM = AnswerFormat("hermes", "<think>", "</think>")


def step(text: str, *, is_last: bool) -> Output:
    """A step that chose a token for each character."""
    usage = Usage(1, 0, 0, 0.0, 0.0, 0.0)
    finish = Finish(FinishReason.LENGTH, usage) if is_last else None
    parts = ((1, 1),) * len(text) if len(text) > 1 else ()
    return Output(1, 0, text, tuple(text.encode()), (), finish, parts)


def read(steps: list[str]) -> tuple[AnswerReader, list[list[object]], list[str]]:
    """The reader at the end, what each step said, and how often the engine was told to stop."""
    told: list[str] = []
    reader = AnswerReader(AnswerParser(FORM, new_id=lambda: "id"), lambda: told.append("over"))
    ends = itertools.chain([False] * (len(steps) - 1), [True])
    said = [list(reader.feed(step(text, is_last=is_last))) for text, is_last in zip(steps, ends, strict=True)]
    return reader, said, told


@given(st.sampled_from(ANSWERS), st.data())
def test_tokens_that_a_step_chose_together_count_as_they_would_one_by_one(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1))))
    together, said, told = read([text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])])
    singly, said_singly, told_singly = read(list(text))
    assert together.reasoning_tokens == singly.reasoning_tokens
    assert together.finish == singly.finish
    assert Answer.of(itertools.chain(*said)) == Answer.of(itertools.chain(*said_singly))  # type: ignore[arg-type]
    assert told_singly == (["over"] if text.count("<tool_call>") == 3 else [])
    assert len(told) <= len(told_singly)


def test_what_is_thought_is_counted_where_the_whole_answer_comes_in_one_step() -> None:
    reader, (said,), told = read([f"{THOUGHTS}{CALL}{CALL}Not any more"])
    assert said == [
        ReasoningDelta("Let us see."),
        ToolCallBegin(0, "id", "f"),
        ToolArgumentsDelta(0, '{"a": 1}'),
    ]
    assert len("Let us see.") <= reader.reasoning_tokens < len(THOUGHTS)
    # It had ended already: nobody need be told.
    assert told == []
    assert reader.finish.reason is FinishReason.STOP
    assert reader.finish.usage.completion_tokens == len(f"{THOUGHTS}{CALL}{CALL}") - len("}</tool_call>")


def test_pieces_of_one_kind_go_together() -> None:
    _, (said,), _ = read([f"{THOUGHTS}Yes, so."])
    assert said == [ReasoningDelta("Let us see."), ContentDelta("Yes, so.")]
