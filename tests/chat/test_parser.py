"""Answers as models write them, family by family: whole, a character at a time, cut anywhere, held by the grammar."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from ggufd.chat.answers.parser import AnswerParser
from ggufd.chat.deltas.answer import (
    Answer,
    ContentDelta,
    Delta,
    ReasoningDelta,
    ToolArgumentsDelta,
    ToolCallBegin,
    is_object,
)
from ggufd.chat.prompt import AnswerFormat, ToolMode
from ggufd.chat.rendering.validity import check_json
from ggufd.chat.tools.formats.families import BY_NAME
from ggufd.chat.tools.formats.tagged import TaggedCalls
from ggufd.chat.tools.grammar import Calling, answer_grammar
from ggufd.chat.tools.rules import GrammarRules, Tool, literal, text_arguments
from tests.support.examples import examples

WEATHER = Tool(
    "get_weather",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
CLOCK = Tool("clock", {"type": "object", "properties": {}, "additionalProperties": False})
TOOLS = (WEATHER, CLOCK)
TEXTS = {"get_weather": ("city",)}

PARIS = ("get_weather", {"city": "Paris"})
OSLO = ("get_weather", {"city": 'Oslo "N"', "days": 3})
NOW = ("clock", {})


@dataclass(frozen=True)
class Trace:
    """What a model of one family wrote, and what it means. `opened` is how the prompt began the thoughts."""

    family: str
    text: str
    calls: tuple[tuple[str, dict[str, Any]], ...]
    content: str = ""
    reasoning: str = ""
    opening: str = ""
    closing: str = ""
    opened: str = ""

    @property
    def form(self) -> AnswerFormat:
        return AnswerFormat(self.family, self.opening, self.closing, self.opened, TEXTS)


CALL_PARIS = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
CALL_OSLO = '{"name": "get_weather", "arguments": {"city": "Oslo \\"N\\"", "days": 3}}'
CALL_NOW = '{"name": "clock", "arguments": {}}'
THINK = {"opening": "<think>", "closing": "</think>"}

TRACES = [
    Trace("hermes", f"<tool_call>\n{CALL_PARIS}\n</tool_call>", (PARIS,)),
    Trace("generic", f"<tool_call>\n{CALL_NOW}\n</tool_call>", (NOW,)),
    Trace(
        "hermes",
        f"I look.\n\n<tool_call>\n{CALL_PARIS}\n</tool_call>\n<tool_call>\n{CALL_OSLO}\n</tool_call>",
        (PARIS, OSLO),
        content="I look.",
    ),
    Trace(
        "hermes",
        f"<think>\nA <tool_call> would do.\n</think>\n\n<tool_call>\n{CALL_OSLO}\n</tool_call>",
        (OSLO,),
        reasoning="A <tool_call> would do.",
        **THINK,
    ),
    Trace(
        "hermes",
        f"Hm.\n</think>\n\nWell:\n<tool_call>\n{CALL_NOW}\n</tool_call>",
        (NOW,),
        content="Well:",
        reasoning="Hm.",
        opened="<think>\n",
        **THINK,
    ),
    Trace("hermes", "It is < 3 <tool and </tool_call> warm.\n", (), content="It is < 3 <tool and </tool_call> warm.\n"),
    Trace(
        "mistral-json",
        f'[TOOL_CALLS][{CALL_PARIS[:-1]}, "id": "a1b2c3d4e"}}, {CALL_NOW[:-1]}, "id": "000000001"}}]',
        (PARIS, NOW),
    ),
    Trace("mistral-json", f"[TOOL_CALLS] [{CALL_PARIS}]", (PARIS,)),
    Trace(
        "mistral", 'Yes. [TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]clock[ARGS]{}', (PARIS, NOW), "Yes."
    ),
    Trace(
        "mistral",
        '[THINK]Let me see.[/THINK][TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}',
        (PARIS,),
        reasoning="Let me see.",
        opening="[THINK]",
        closing="[/THINK]",
    ),
    Trace(
        "deepseek-r1",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "Paris"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>clock\n```json\n{}'
        "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        (PARIS, NOW),
    ),
    Trace(
        "deepseek-v3.1",
        "So.</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
        '{"city": "Oslo \\"N\\"", "days": 3}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        (OSLO,),
        reasoning="So.",
        opened="<think>",
        **THINK,
    ),
    Trace(
        "kimi-k2",
        "Sure.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        '{"city": "Paris"}<|tool_call_end|><|tool_call_begin|>functions.clock:1<|tool_call_argument_begin|>{}'
        "<|tool_call_end|><|tool_calls_section_end|>",
        (PARIS, NOW),
        content="Sure.",
    ),
    Trace(
        "command-r7b",
        '<|START_THINKING|>I will look.<|END_THINKING|><|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": '
        '"get_weather", "parameters": {"city": "Paris"}}\n]<|END_ACTION|>'.replace("[\n    ", "[").replace("\n]", "]"),
        (PARIS,),
        reasoning="I will look.",
        opening="<|START_THINKING|>",
        closing="<|END_THINKING|>",
    ),
    Trace(
        "functionary",
        'Ok. <function=get_weather>{"city": "Paris"}</function><function=clock>{}</function>',
        (PARIS, NOW),
        content="Ok.",
    ),
    Trace("granite", f"<|tool_call|>[{CALL_PARIS}, {CALL_NOW}]", (PARIS, NOW)),
    Trace("nemotron", f"<TOOLCALL>[{CALL_PARIS}]</TOOLCALL>", (PARIS,)),
    Trace("llama-3", CALL_PARIS.replace("arguments", "parameters"), (PARIS,)),
    Trace("llama-3", 'Is {"name": "Bob"} a name?', (), content='Is {"name": "Bob"} a name?'),
    Trace(
        "lfm2",
        '<|tool_call_start|>[get_weather(city="Oslo \\"N\\"", days=3), clock()]<|tool_call_end|>',
        (OSLO, NOW),
    ),
    Trace("pythonic", '[get_weather(city="Paris")]', (PARIS,)),
    Trace("pythonic", "Not a list [1].", (), content="Not a list [1]."),
    Trace(
        "qwen3-coder",
        'I look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo "N"\n</parameter>\n<parameter=days>\n3\n'
        "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=clock>\n</function>\n</tool_call>",
        (OSLO, NOW),
        content="I look.",
    ),
    Trace(
        "seed-oss",
        "<seed:think>Hm.</seed:think><seed:tool_call><function=get_weather><parameter=city>Paris</parameter></function>"
        "</seed:tool_call>",
        (PARIS,),
        reasoning="Hm.",
        opening="<seed:think>",
        closing="</seed:think>",
    ),
    Trace(
        "gemma-4",
        'I look.<|tool_call>call:get_weather{city:<|"|>Oslo "N"<|"|>,days:3}<tool_call|>'
        "<|tool_call>call:clock{}<tool_call|>",
        (OSLO, NOW),
        content="I look.",
    ),
    Trace(
        "gemma-4",
        '<|channel>thought\nWarm?<channel|><|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|>',
        (PARIS,),
        reasoning="Warm?",
        opening="<|channel>thought\n",
        closing="<channel|>",
    ),
    Trace(
        "minimax-m2",
        'Let me see.\n<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Oslo "N"</parameter>\n'
        '<parameter name="days">3</parameter>\n</invoke>\n<invoke name="clock">\n</invoke>\n</minimax:tool_call>',
        (OSLO, NOW),
        content="Let me see.",
    ),
    Trace(
        "deepseek-v3.2",
        '<think>\nWarm?</think>I look.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n'
        '<｜DSML｜parameter name="city" string="true">Oslo "N"</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        '<｜DSML｜invoke name="clock">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
        (OSLO, NOW),
        content="I look.",
        reasoning="Warm?",
        **THINK,
    ),
    Trace(
        "deepseek-v4",
        '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" string="true">Paris'
        "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
        (PARIS,),
    ),
    Trace("deepseek-v4", "1 <｜ 2, <｜DSML｜tool, 3", (), content="1 <｜ 2, <｜DSML｜tool, 3"),
    Trace(
        "glm",
        '<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo "N"</arg_value>\n<arg_key>days</arg_key>\n'
        "<arg_value>3</arg_value>\n</tool_call>",
        (OSLO,),
    ),
    Trace(
        "harmony",
        "<|channel|>analysis<|message|>The user asks.<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}',
        (PARIS,),
        reasoning="The user asks.",
    ),
    Trace(
        "harmony",
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.clock<|channel|>commentary json"
        "<|message|>{}",
        (NOW,),
        content="I look.",
    ),
    Trace("harmony", "<|channel|>final<|message|>It is warm.\n", (), content="It is warm.\n"),
    Trace(
        "functionary-3.2", 'all\nI look.>>>get_weather\n{"city": "Paris"}>>>clock\n{}', (PARIS, NOW), content="I look."
    ),
    Trace("functionary-3.2", 'get_weather\n{"city": "Paris"}', (PARIS,)),
    Trace("functionary-3.2", "all\nNone > 3 >> 2.", (), content="None > 3 >> 2."),
    Trace("command-r", 'Action: ```json\n[{"tool_name": "clock", "parameters": {}}]\n```', (NOW,)),
    Trace("firefunction", f" functools[{CALL_PARIS}, {CALL_NOW}]", (PARIS, NOW)),
]


def ids() -> Any:
    """Call ids that a test can foretell."""
    numbers = itertools.count()
    return lambda: f"call_{next(numbers)}"


def read(form: AnswerFormat, pieces: Iterable[str]) -> list[Delta]:
    parser = AnswerParser(form, new_id=ids())
    deltas = [delta for piece in pieces for delta in parser.feed(piece)]
    return [*deltas, *parser.finish()]


def plain(answer: Answer) -> tuple[str, str, tuple[tuple[str, Any], ...]]:
    return answer.content, answer.reasoning, tuple((call.name, json.loads(call.arguments)) for call in answer.calls)


@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: trace.family)
def test_a_trace_is_read_whole_and_a_character_at_a_time(trace: Trace) -> None:
    for pieces in ([trace.text], trace.text):
        answer = Answer.of(read(trace.form, pieces))
        assert plain(answer) == (trace.content, trace.reasoning, trace.calls)
        assert [call.call_id for call in answer.calls] == [f"call_{i}" for i in range(len(trace.calls))]


@given(st.sampled_from(TRACES), st.data())
def test_how_a_text_is_cut_into_pieces_makes_no_difference(trace: Trace, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(trace.text) - 1)))))
    pieces = [trace.text[a:b] for a, b in itertools.pairwise([0, *cuts, len(trace.text)])]
    assert plain(Answer.of(read(trace.form, pieces))) == (trace.content, trace.reasoning, trace.calls)


@given(st.sampled_from(TRACES), st.data())
def test_an_answer_that_ends_anywhere_is_a_beginning_of_the_whole(trace: Trace, data: st.DataObject) -> None:
    n = data.draw(st.integers(0, len(trace.text)))
    deltas = read(trace.form, trace.text[:n])
    begins = [delta for delta in deltas if isinstance(delta, ToolCallBegin)]
    assert [begin.call for begin in begins] == list(range(len(begins)))
    assert len({begin.call_id for begin in begins}) == len(begins)
    answer = Answer.of(deltas)
    for call, (name, arguments) in zip(answer.calls, trace.calls, strict=False):
        assert call.name == name
        if call is not answer.calls[-1]:
            assert json.loads(call.arguments) == arguments
    assert answer.reasoning in trace.text


def test_no_delta_is_empty_and_calls_come_in_order() -> None:
    for trace in TRACES:
        seen = -1
        for delta in read(trace.form, trace.text):
            match delta:
                case ContentDelta(text) | ReasoningDelta(text):
                    assert text
                case ToolCallBegin(call, call_id, name):
                    assert (call, bool(call_id), bool(name)) == (seen + 1, True, True)
                    seen = call
                case ToolArgumentsDelta(call, text):
                    assert text
                    assert call == seen


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call>\nno JSON\n</tool_call>",
        '<tool_call>{"city": "Paris"}</tool_call>',
        '<tool_call>{"name": 3}</tool_call>',
        '<tool_call>{"name": "f", ',
        "<tool_call>[[]]</tool_call>",
        "<tool_call>{" + '"a":[' * 300,
        "<tool_cal",
        "a <tool_call b",
    ],
)
def test_what_only_looks_like_a_call_is_never_lost(text: str) -> None:
    answer = Answer.of(read(AnswerFormat("hermes"), f"Text {text}"))
    if not answer.calls:
        assert answer.content == f"Text {text}"


def read_cut(form: AnswerFormat, pieces: Iterable[str]) -> Answer:
    """What is said of a text that a limit or a stop string has cut."""
    parser = AnswerParser(form, new_id=ids())
    deltas = [delta for piece in pieces for delta in parser.feed(piece)]
    return Answer.of([*deltas, *parser.finish(is_cut=True)])


@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: trace.family)
def test_of_an_answer_that_is_cut_no_mark_is_said(trace: Trace) -> None:
    for n in range(len(trace.text)):
        for pieces in ([trace.text[:n]], trace.text[:n]):
            answer = read_cut(trace.form, pieces)
            assert trace.content.startswith(answer.content.rstrip()), n
            assert trace.reasoning.startswith(answer.reasoning), n
            for call, (name, arguments) in zip(answer.calls, trace.calls, strict=False):
                assert call.name == name
                # Never whole and yet not all of it.
                assert not is_object(call.arguments) or json.loads(call.arguments) == arguments


def test_a_cut_takes_nothing_from_a_text_that_is_no_call() -> None:
    assert read_cut(AnswerFormat("hermes"), "a <b> <tool_call b").content == "a <b> <tool_call b"
    assert read_cut(AnswerFormat("hermes"), "<tool_call>no JSON").content == "<tool_call>no JSON"
    assert read_cut(AnswerFormat("harmony"), "Plain text, to=day").content == "Plain text, to=day"


def test_blanks_behind_a_call_are_no_content() -> None:
    assert Answer.of(read(AnswerFormat("hermes"), f"<tool_call>{CALL_NOW}</tool_call>\n\n")).content == ""
    said = Answer.of(read(AnswerFormat("hermes"), f"<tool_call>{CALL_NOW}</tool_call>\nDone.\n"))
    assert said.content == "\nDone.\n"


def test_what_is_said_to_be_a_text_keeps_its_last_line_end() -> None:
    text = (
        '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="a" string="true">x\n'
        "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
    )
    (call,) = Answer.of(read(AnswerFormat("deepseek-v4"), text)).calls
    assert json.loads(call.arguments) == {"a": "x\n"}


def test_no_number_is_too_large_for_json() -> None:
    (call,) = Answer.of(read(AnswerFormat("pythonic"), "[f(x=1e999, y=[-1e999])]")).calls
    assert json.loads(call.arguments, parse_constant=pytest.fail)["x"] > 1e300


def test_arguments_that_come_first_or_as_text_or_not_at_all() -> None:
    text = (
        '<tool_call>{"arguments": {"city": "Paris"}, "id": 1, "name": "get_weather"}</tool_call>'
        '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}</tool_call>'
        '<tool_call>{"name": "clock"}</tool_call>'
        '<tool_call>[{"name": "get_weather", "arguments": {"city": "Rome"}}]'
    )
    calls = plain(Answer.of(read(AnswerFormat("hermes"), text)))[2]
    assert calls == (PARIS, ("get_weather", {"city": "Oslo"}), NOW, ("get_weather", {"city": "Rome"}))


# --- repeated calls -------------------------------------------------------------------------------------------------

SEVERAL = sorted(name for name, one in BY_NAME.items() if (one.write([PARIS, NOW]) or "") != (one.write([PARIS]) or ""))
"""Families that write several calls in one answer."""


@pytest.mark.parametrize("family", SEVERAL)
def test_a_call_that_was_made_already_ends_the_answer(family: str) -> None:
    written = BY_NAME[family].write([PARIS, NOW, OSLO, PARIS]) or ""
    text = f"{written}\nNo more of that."
    for pieces in ([text], text):
        parser = AnswerParser(AnswerFormat(family, text_arguments=TEXTS), new_id=ids())
        deltas = [delta for piece in pieces for delta in parser.feed(piece)]
        assert parser.is_over
        assert parser.has_whole_calls
        assert plain(Answer.of([*deltas, *parser.finish()])) == ("", "", (PARIS, NOW, OSLO))


def test_the_repetition_of_a_call_without_arguments_ends_the_answer() -> None:
    for repeated in ('{"name": "clock"}', CALL_NOW, '{"arguments": { }, "name": "clock"}'):
        text = f"<tool_call>{CALL_NOW}</tool_call><tool_call>{repeated}</tool_call>"
        assert plain(Answer.of(read(AnswerFormat("hermes"), text)))[2] == (NOW,)


def test_a_repeated_call_in_another_spelling_is_the_same_call() -> None:
    other = '{"name": "get_weather", "arguments": {\n "days":3.0,\t"city" : "\\u004fslo \\"N\\""}}'
    text = f"<tool_call>{CALL_OSLO}</tool_call>\n<tool_call>{other}</tool_call>"
    for pieces in ([text], text):
        assert plain(Answer.of(read(AnswerFormat("hermes"), pieces)))[2] == (OSLO,)


def test_the_same_arguments_of_another_tool_are_another_call() -> None:
    text = '<tool_call>{"name": "clock", "arguments": {}}</tool_call><tool_call>{"name": "c", "arguments": {}}'
    assert plain(Answer.of(read(AnswerFormat("hermes"), text)))[2] == (NOW, ("c", {}))


def test_no_call_is_held_back_longer_than_it_is_like_an_earlier_one() -> None:
    parser = AnswerParser(AnswerFormat("hermes"), new_id=ids())
    told = [parser.feed(character) for character in '<tool_call>{"name": "f", "arguments": {"a": "xyz"}}</tool_call>']
    assert Answer.of(itertools.chain(*told[: -len('z"}}</tool_call>')])).calls[0].arguments == '{"a": "xy'
    assert parser.feed('<tool_call>{"name": "f", "arguments": {"a": "x') == []
    begin, arguments = parser.feed("Y")
    assert begin == ToolCallBegin(1, "call_1", "f")
    assert arguments == ToolArgumentsDelta(1, '{"a": "xY')
    assert "".join(delta.text for delta in parser.feed('z"}') if isinstance(delta, ToolArgumentsDelta)) == 'z"}'
    # Nor one of another tool.
    assert parser.feed('}</tool_call><tool_call>{"name": "g", ') == [ToolCallBegin(2, "call_2", "g")]


@pytest.mark.parametrize("rest", ["", '"', '"}}</tool_cal'])
def test_a_call_that_ends_while_it_is_held_back_is_told_unless_it_is_whole(rest: str) -> None:
    text = f'<tool_call>{CALL_PARIS}</tool_call><tool_call>{{"name": "get_weather", "arguments": {{"city": "Paris{rest}'
    for read_all in (lambda form, pieces: Answer.of(read(form, pieces)), read_cut):
        calls = [call.arguments for call in read_all(AnswerFormat("hermes"), text).calls]
        assert calls == ['{"city": "Paris"}', *([] if "}" in rest else [f'{{"city": "Paris{rest}'])]


def test_a_call_that_cannot_be_made_is_not_held_to_have_been_made() -> None:
    text = '<tool_call>{"name": "f", "arguments": [1]}</tool_call>' * 2
    assert plain(Answer.of(read(AnswerFormat("hermes"), text)))[2] == (("f", [1]), ("f", [1]))


@given(st.text(alphabet='<tool_cal>/{}[]"\\:, \nname', max_size=60), st.sampled_from(sorted(BY_NAME)))
def test_any_text_is_read_the_same_in_pieces_and_whole(text: str, family: str) -> None:
    form = AnswerFormat(family, "<think>", "</think>", "", TEXTS)
    assert Answer.of(read(form, text)) == Answer.of(read(form, [text]))


@given(st.text(alphabet="<think>/ \nab", max_size=40))
def test_without_tools_nothing_of_the_content_is_lost(text: str) -> None:
    form = AnswerFormat(opening="<think>", closing="</think>")
    whole = "".join(delta.text for delta in _kept(form, text))
    assert whole == text
    if not text.lstrip("\n").startswith("<think>"):
        answer = Answer.of(read(form, text))
        assert (answer.content, answer.reasoning) == (text, "")


def _kept(form: AnswerFormat, text: str) -> list[ContentDelta]:
    parser = AnswerParser(form, keeps_thinking=True)
    deltas = [delta for character in text for delta in parser.feed(character)] + parser.finish()
    assert all(isinstance(delta, ContentDelta) for delta in deltas)
    return [delta for delta in deltas if isinstance(delta, ContentDelta)]


def test_kept_thoughts_have_both_marks_also_where_the_prompt_opened_them() -> None:
    form = AnswerFormat(opening="<think>", closing="</think>", opened="<think>\n")
    assert "".join(delta.text for delta in _kept(form, "a\n</think>\n\nb")) == "<think>\na\n</think>\n\nb"


def test_after_the_thoughts_all_is_plain() -> None:
    parser = AnswerParser(AnswerFormat(opening="<think>", closing="</think>"))
    assert not parser.is_plain
    assert parser.feed("<think>a</think>b") == [ReasoningDelta("a"), ContentDelta("b")]
    assert parser.is_plain
    assert parser.feed(" c ") == [ContentDelta(" c ")]
    assert AnswerParser().is_plain


@pytest.mark.parametrize("family", sorted(name for name, one in BY_NAME.items() if one.write([PARIS]) is not None))
def test_what_a_format_writes_it_reads_and_its_grammar_takes(family: str) -> None:
    calls = (OSLO, NOW) if "llama" not in family else (OSLO,)
    text = BY_NAME[family].write(calls) or ""
    assert plain(Answer.of(read(AnswerFormat(family, text_arguments=TEXTS), text))) == ("", "", calls)
    assert takes(matcher(family, ToolMode.REQUIRED), text)


# --- the grammar ----------------------------------------------------------------------------------------------------

_BYTES = LLTokenizer("byte")


def matcher(family: str, mode: ToolMode = ToolMode.AUTO, *, may_repeat: bool = True) -> LLMatcher:
    """The grammar of an answer without thoughts, over bytes."""
    calling = Calling(BY_NAME[family], mode, may_repeat)
    lark = answer_grammar(GrammarRules(TOOLS, literal), calling, None, is_inside=False, has_body=False)
    found = LLMatcher(_BYTES, LLMatcher.grammar_from_lark(lark), log_level=0)
    assert not found.is_error(), f"{lark}\n{found.get_error()}"
    return found


def takes(found: LLMatcher, text: str) -> bool:
    """Whether the text may be written, and the answer may end after it."""
    tokens = _BYTES.tokenize_bytes(text.encode())
    return found.try_consume_tokens(tokens) == len(tokens) and found.is_accepting()


@pytest.mark.parametrize("trace", [t for t in TRACES if t.calls and not t.reasoning], ids=lambda trace: trace.family)
def test_the_grammar_takes_what_the_family_writes(trace: Trace) -> None:
    assert takes(matcher(trace.family), trace.text)
    if not trace.content:
        assert takes(matcher(trace.family, ToolMode.REQUIRED), trace.text)
    if len(trace.calls) > 1:
        assert not takes(matcher(trace.family, may_repeat=False), trace.text)


@pytest.mark.parametrize("family", sorted(BY_NAME))
def test_text_is_free_until_a_call_is_opened(family: str) -> None:
    said = {"harmony": "<|channel|>final<|message|>", "functionary-3.2": "all\n"}.get(family, "")
    assert takes(matcher(family), said)
    assert takes(matcher(family), f"{said}Free text, <b>, [1], {{no}} call.")
    assert not takes(matcher(family, ToolMode.REQUIRED), said)
    wrong = _BYTES.tokenize_bytes(f"{BY_NAME[family].opening}no such thing".encode())
    assert matcher(family).try_consume_tokens(wrong) < len(wrong)


@dataclass
class _Walk:
    """A text that the grammar allows, one allowed byte after another."""

    found: LLMatcher
    tokens: list[int] = field(default_factory=list)

    def go(self, choose: Any) -> bytes:
        while not self.found.is_stopped() and len(self.tokens) < 400:
            mask = self.found.compute_bitmask()
            allowed = [token for token in range(256) if mask[token // 8] >> token % 8 & 1]
            if not allowed or (self.found.is_accepting() and len(self.tokens) > 150):
                break
            token = choose(allowed)
            assert self.found.consume_token(token)
            self.tokens.append(token)
        return bytes(self.tokens)


@pytest.mark.parametrize("family", sorted(BY_NAME))
@settings(max_examples=examples(15))
@given(st.randoms(use_true_random=False))
def test_whatever_the_grammar_lets_through_is_read_as_calls_that_fit(family: str, random: Any) -> None:
    walk = _Walk(matcher(family, ToolMode.REQUIRED, may_repeat=False))
    text = walk.go(lambda allowed: random.choice([t for t in allowed if 32 <= t < 127] or allowed))
    if not walk.found.is_accepting():
        return
    answer = Answer.of(read(AnswerFormat(family, text_arguments=TEXTS), [text.decode()]))
    assert answer.content == ""
    (call,) = answer.calls
    arguments = json.loads(call.arguments)
    if call.name == "get_weather":
        assert isinstance(arguments["city"], str)
        assert set(arguments) <= {"city", "days"}
    else:
        assert (call.name, arguments) == NOW


_ODD_NAMES = (
    "from",
    "max-price",
    "$filter",
    "a.b",
    "with space",
    "filter[x]",
    "ü",
    "True",
    "dc:title",
    "a=b",
    'q"',
    "(p",
)


@pytest.mark.parametrize("family", sorted(BY_NAME))
@settings(max_examples=5)
@given(st.randoms(use_true_random=False))
def test_arguments_are_read_whatever_they_are_called(family: str, random: Any) -> None:
    kinds = {"type": "boolean"}, {"type": "integer", "maximum": 99, "minimum": 0}, {"enum": ["a, b", 'c"=', 1]}
    properties = {name: random.choice(kinds) for name in random.sample(_ODD_NAMES, 3)}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    rules = GrammarRules((Tool("f", {**parameters, "additionalProperties": False}),), literal)
    calling = Calling(BY_NAME[family], ToolMode.REQUIRED, may_repeat=False)
    lark = answer_grammar(rules, calling, None, is_inside=False, has_body=False)
    walk = _Walk(LLMatcher(_BYTES, LLMatcher.grammar_from_lark(lark), log_level=0))
    text = walk.go(lambda allowed: random.choice([t for t in allowed if 32 < t < 127] or allowed)).decode()
    assume(walk.found.is_accepting())
    (call,) = Answer.of(read(AnswerFormat(family, text_arguments={"f": text_arguments(parameters)}), text)).calls
    check_json(json.dumps(parameters), call.arguments)


_BOUNDED = {
    "short": {"type": "string", "maxLength": 3, "description": "Short."},
    "long": {"type": "string", "minLength": 2},
    "none": {"type": "string", "maxLength": 0},
    "one": {"const": "zz", "type": "string"},
    "any": {"enum": ["a", "b"]},
    "code": {"type": "string", "pattern": "^[0-9]{2}$"},
}
_FITTING = {"short": "abc", "long": "xy", "none": "", "one": "zz", "any": "b", "code": "12"}


@pytest.mark.parametrize("family", [name for name, one in BY_NAME.items() if isinstance(one, TaggedCalls)])
@pytest.mark.parametrize(
    "wrong", [{}, {"short": "abcd"}, {"long": "x"}, {"none": "x"}, {"one": "y"}, {"any": "c"}, {"code": "123"}]
)
def test_texts_between_tags_are_held_to_what_their_schema_says(family: str, wrong: dict[str, str]) -> None:
    parameters = {"type": "object", "properties": _BOUNDED, "required": list(_BOUNDED), "additionalProperties": False}
    form = BY_NAME[family]
    rules = GrammarRules((Tool("f", parameters),), literal)
    lark = answer_grammar(rules, Calling(form, ToolMode.REQUIRED, False), None, is_inside=False, has_body=False)
    arguments = _FITTING | wrong
    text = form.write([("f", arguments)]) or ""
    # A pattern is held in JSON.
    text = text.replace(arguments["code"], json.dumps(arguments["code"]))
    text = text.replace('"code" string="true"', '"code" string="false"')
    assert takes(LLMatcher(_BYTES, LLMatcher.grammar_from_lark(lark), log_level=0), text) is not bool(wrong)
    (call,) = Answer.of(read(AnswerFormat(family, text_arguments={"f": text_arguments(parameters)}), text)).calls
    assert json.loads(call.arguments) == arguments


def test_nested_arguments_of_gemma_are_held_and_read_in_its_own_way_or_as_json() -> None:
    inner = {"type": "object", "properties": {"b": {"type": "integer"}, "A": {"enum": ["x", "y"]}}, "required": ["b"]}
    parameters = {
        "type": "object",
        "properties": {
            "tags": {"type": "array", "items": {"type": "string", "description": "One."}},
            "inner": {**inner, "additionalProperties": False},
            "code": {"type": "string", "pattern": "^[0-9]{3}$"},
            "any": {"type": "object"},
        },
        "required": ["tags", "inner", "code", "any"],
        "additionalProperties": False,
    }
    calling = Calling(BY_NAME["gemma-4"], ToolMode.REQUIRED, may_repeat=False)
    rules = GrammarRules((Tool("f", parameters),), literal)
    lark = answer_grammar(rules, calling, None, is_inside=False, has_body=False)
    own = 'inner:{A:<|"|>x<|"|>,b:2},tags:[<|"|>a {<|"|>,<|"|>"b\\n"<|"|>]'
    text = f'<|tool_call>call:f{{any:{{"k": [1]}},code:"123",{own}}}<tool_call|>'

    def is_held(written: str) -> bool:
        return takes(LLMatcher(_BYTES, LLMatcher.grammar_from_lark(lark), log_level=0), written)

    assert is_held(text)
    assert not is_held(text.replace("123", "12"))
    assert not is_held(text.replace("b:2", ""))
    assert not is_held(text.replace('A:<|"|>x', 'A:<|"|>z'))
    (call,) = Answer.of(read(AnswerFormat("gemma-4"), text)).calls
    expected = {"any": {"k": [1]}, "code": "123", "inner": {"A": "x", "b": 2}, "tags": ["a {", '"b\\n"']}
    assert json.loads(call.arguments) == expected


@pytest.mark.parametrize(
    "arguments", ["{a:}", "{a:[,]}", "{a:[}", "{:1", "{", '{a:<|"|>b', "{a:" + "[" * 300, '{<|"|>a']
)
def test_what_gemma_leaves_unfinished_ends(arguments: str) -> None:
    for pieces in ([f"<|tool_call>call:f{arguments}"], f"<|tool_call>call:f{arguments}"):
        answer = Answer.of(read(AnswerFormat("gemma-4"), pieces))
        assert not answer.has_whole_calls
