"""What is decided from a template and a conversation: the format of calls, the prompt, how a history is written."""

from __future__ import annotations

import itertools
import json
from array import array
from pathlib import Path
from typing import Any, get_args

import pytest
from llguidance import LLTokenizer

from ggufd.chat.answers.answer_planner import AnswerPlanner
from ggufd.chat.answers.parser import AnswerParser
from ggufd.chat.deltas.answer import Answer
from ggufd.chat.prompt import AnswerFormat, ChatPrompt, ToolChoice, ToolMode
from ggufd.chat.rendering.renderer import ChatRenderer
from ggufd.chat.rendering.template import CHATML
from ggufd.chat.tools.formats.families import BY_NAME, FORMATS
from ggufd.engine.messages.sampling import ReasoningBudget
from ggufd.engine.sampling.reasoning_budget import ReasoningGuard
from ggufd.llama.grammar.grammar import Matcher, compile_grammar
from ggufd.settings.config import ToolFormatName
from tests.support.matching import allows
from tests.support.models.vocabularies import SOURCE_VARIABLE, templates
from tests.support.renderers import renderer_of

_BYTES = LLTokenizer("byte")

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
ARGUMENTS = {"city": "Oslo", "days": 3}
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "get_weather", "arguments": json.dumps(ARGUMENTS)},
}
ASKED = {"role": "user", "content": "Question?"}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": "SUNNY"}
HISTORY = (ASKED, CALLED, RESULT)


def planned(source: str, tool_format: str | None = None) -> tuple[ChatRenderer, AnswerPlanner]:
    renderer = renderer_of(source)
    planner = AnswerPlanner(
        source,
        lambda text: [text],
        lambda schema: schema,
        knows_tools=renderer.knows_tools,
        carries_calls=renderer.carries_calls,
        tool_format=tool_format,
    )
    return renderer, planner


def rendered(source: str, chat: ChatPrompt, tool_format: str | None = None) -> str:
    renderer, planner = planned(source, tool_format)
    return renderer.render(planner.prepare(chat))[0]


def test_a_template_without_tools_gets_a_prompt_and_a_history_in_words() -> None:
    text = rendered(CHATML, ChatPrompt(HISTORY, tools=(WEATHER,)))
    assert text.startswith("<|im_start|>system\nYou can call these tools:\n")
    assert (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}}\n</tool_call><|im_end|>' in text
    )
    assert "<|im_start|>user\n<tool_response>\nSUNNY\n</tool_response><|im_end|>" in text


def test_no_tools_are_told_where_none_may_be_called() -> None:
    chat = ChatPrompt((ASKED,), tools=(WEATHER,), tool_choice=ToolChoice(ToolMode.NONE))
    assert "get_weather" not in rendered(CHATML, chat)


def test_the_format_can_be_set_where_the_template_does_not_show_it() -> None:
    text = rendered(CHATML, ChatPrompt((ASKED,), tools=(WEATHER,)), tool_format="mistral-json")
    assert '[TOOL_CALLS][{"name": "name_of_the_tool", "arguments"' in text


KNOWS_TOOLS = CHATML + "{% for tool in tools or () %}<tool_call>{{ tool.function.name }}</tool_call>{% endfor %}"


@pytest.mark.parametrize(("source", "unsaid"), [(CHATML, False), (KNOWS_TOOLS, True)])
@pytest.mark.parametrize("mode", [ToolMode.AUTO, ToolMode.REQUIRED])
def test_several_calls_may_come_where_the_request_says_so_or_else_the_template_knows_of_tools(
    source: str, unsaid: bool, mode: ToolMode
) -> None:
    renderer, planner = planned(source)
    assert renderer.knows_tools is unsaid
    call = json.dumps({"name": "get_weather", "arguments": {"city": "Oslo"}})
    other = call.replace("Oslo", "Paris")
    text = f"<tool_call>\n{call}\n</tool_call>\n<tool_call>\n{other}\n</tool_call>"
    for sent, wanted in ((None, unsaid), (True, True), (False, False)):
        chat = ChatPrompt((ASKED,), tools=(WEATHER,), tool_choice=ToolChoice(mode), parallel_tool_calls=sent)
        plan = planner.plan(chat, "", "")
        assert planner.may_repeat(chat) is wanted
        assert plan.grammar is not None
        matcher = Matcher(_BYTES, compile_grammar("lark", plan.grammar))
        assert all(matcher.accept(byte) for byte in text.encode()) is wanted
        if not unsaid:
            assert ("one after another" in rendered(source, chat)) is wanted


@pytest.mark.parametrize(
    ("prompt_end", "begun", "opened"),
    [
        ("<|im_start|>assistant\n<think>\n", "", "<think>\n"),
        ("<|im_start|>assistant\n", "", ""),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "", ""),
        ("<|im_start|>assistant\n", "<think>I", "<think>I"),
        ("<|im_start|>assistant\n", "<think>I</think>So", ""),
        ("<|im_start|>assistant\n<think>\n", "I", "<think>\nI"),
        ("What does <think> do?<|im_end|>\n<|im_start|>assistant\n", "", ""),
    ],
)
def test_whether_the_prompt_has_opened_thoughts(prompt_end: str, begun: str, opened: str) -> None:
    _, planner = planned(CHATML + "{# <think> #}")
    plan = planner.plan(ChatPrompt((ASKED,)), prompt_end + begun, begun)
    assert plan.form.opened == opened
    assert plan.frame is not None
    assert plan.grammar is None


def test_thoughts_that_the_grammar_lets_through_are_read_as_such() -> None:
    """Else they would be content, which has a schema of its own."""
    _, planner = planned(CHATML + "{# <think> #}")
    plan = planner.plan(ChatPrompt((ASKED,)), "<|im_start|>assistant\n", "")
    assert plan.frame is not None
    start = Matcher(_BYTES, compile_grammar("regex", "[ab]", plan.frame))
    for blanks in map("".join, itertools.product("\n \u2003", repeat=3)):
        for length in range(4):
            text = f"{blanks[:length]}<think>I</think>a"
            matcher = start.copy()
            if all(matcher.accept(byte) for byte in text.encode()):
                parser = AnswerParser(plan.form)
                answer = Answer.of([*parser.feed(text), *parser.finish()])
                assert (answer.reasoning, answer.content) == ("I", "a")
    assert allows(start, b"\n\n<think>")


@pytest.mark.parametrize(
    ("tool_format", "said", "calling"),
    [
        ("harmony", "<|channel|>final<|message|>Hi", "<|channel|>commentary to=functions.get_weather<|message|>{}"),
        ("functionary-3.2", "all\nHi > you, >>", "all\nHi>>>get_weather\n{}"),
        ("functionary-3.2", "all\n", "get_weather\n{}"),
    ],
)
def test_where_no_tool_may_be_called_a_format_of_whole_answers_cannot(
    tool_format: str, said: str, calling: str
) -> None:
    _, planner = planned("{% for tool in tools %}{{ tool | tojson }}{% endfor %}" + CHATML, tool_format)
    none = ToolChoice(ToolMode.NONE)
    grammar = planner.plan(ChatPrompt((ASKED,), tools=(WEATHER,), tool_choice=none), "", "").grammar
    assert grammar is not None
    start = Matcher(_BYTES, compile_grammar("lark", grammar))
    for text, is_allowed in ((said, True), (calling, False)):
        matcher = start.copy()
        assert all(matcher.accept(byte) for byte in text.encode()) is is_allowed
        assert matcher.is_accepting is is_allowed
    assert planner.plan(ChatPrompt((ASKED,)), "", "").grammar is None


def test_a_second_message_of_thoughts_is_within_the_bound_of_the_first() -> None:
    """gpt-oss may think again where it has thought, by the grammar of its answers and without one."""
    _, planner = planned("{% for tool in tools %}{{ tool | tojson }}{% endfor %}" + CHATML, "harmony")
    thoughts = planner.plan(ChatPrompt((ASKED,), tools=(WEATHER,)), "<|start|>assistant", "").reasoning
    assert thoughts is not None
    guard = ReasoningGuard(ReasoningBudget(thoughts.opening, thoughts.closing, (0,), 20, thoughts.reopening))
    said = array("i")
    for text, is_ending in (
        ("<|channel|>analysis<|message|>Hm.<|end|>", False),
        ("<|start|>assistant<|channel|>analysis<|message|>Let", False),
        (" me think of this", True),
    ):
        for byte in text.encode():
            said.append(byte)
            guard.note(bytes([byte]), said)
        assert guard.is_ending is is_ending


@pytest.mark.parametrize(
    ("parameters", "is_closed"),
    [
        (None, True),
        ({}, True),
        ({"type": "object", "properties": {}}, True),
        ({"type": "object", "properties": {"city": {"type": "string"}}}, True),
        ({"type": "object"}, False),
        ({"type": "object", "properties": {}, "additionalProperties": True}, False),
        ({"type": "object", "properties": {}, "patternProperties": {"^a": {}}}, False),
    ],
)
def test_arguments_that_a_tool_does_not_name_are_not_written(parameters: Any, *, is_closed: bool) -> None:
    function = {"name": "clock"} if parameters is None else {"name": "clock", "parameters": parameters}
    chat = ChatPrompt(
        (ASKED,), tools=({"type": "function", "function": function},), tool_choice=ToolChoice(ToolMode.REQUIRED)
    )
    _, planner = planned(CHATML)
    grammar = planner.plan(chat, "", "").grammar
    assert grammar is not None
    assert ('"additionalProperties": false' in grammar) is is_closed


def test_every_format_can_be_set_and_is_documented() -> None:
    assert set(get_args(ToolFormatName)) == {"auto", *BY_NAME}
    page = (Path(__file__).parents[2] / "docs/using/structured-output.md").read_text(encoding="utf-8")
    assert [name for name in BY_NAME if f"`{name}`" not in page] == []
    names = [one.name for one in FORMATS]
    assert len(names) == len(set(names))


# --- real templates -------------------------------------------------------------------------------------------------

FAMILIES = {
    "ByteDance-Seed-OSS": "seed-oss",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "command-r7b",
    "GLM-4.6": "glm",
    "Kimi-K2-Instruct": "kimi-k2",
    "LFM2-8B-A1B": "lfm2",
    "LFM2.5-Instruct": "lfm2",
    "MiniMax-M2": "minimax-m2",
    "Mistral-Small-3.2-24B-Instruct-2506": "mistral",
    "NVIDIA-Nemotron-Nano-v2": "nemotron",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "hermes",
    "Qwen-QwQ-32B": "hermes",
    "Qwen-Qwen2.5-7B-Instruct": "hermes",
    "Qwen-Qwen3-0.6B": "hermes",
    "Qwen3-Coder": "qwen3-coder",
    "Qwen3.5-4B": "qwen3-coder",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "deepseek-r1",
    "deepseek-ai-DeepSeek-V3.1": "deepseek-v3.1",
    "deepseek-ai-DeepSeek-V3.2": "deepseek-v3.2",
    "deepseek-ai-DeepSeek-V4": "deepseek-v4",
    "deepseek-ai-DeepSeek-V4-Flash-0731": "deepseek-v4",
    "fireworks-ai-llama-3-firefunction-v2": "firefunction",
    "google-gemma-2-2b-it": "generic",
    "google-gemma-4-31B-it": "gemma-4",
    "google-gemma-4-31B-it-interleaved": "gemma-4",
    "ibm-granite-granite-3.3-2B-Instruct": "granite",
    "llama-cpp-deepseek-r1": "deepseek-r1",
    "meetkai-functionary-medium-v3.1": "functionary",
    "meetkai-functionary-medium-v3.2": "functionary-3.2",
    "meta-llama-Llama-3.1-8B-Instruct": "llama-3",
    "meta-llama-Llama-3.3-70B-Instruct": "llama-3",
    "microsoft-Phi-3.5-mini-instruct": "generic",
    "mistralai-Ministral-3-14B-Reasoning-2512": "mistral",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral-json",
    "moonshotai-Kimi-K2": "kimi-k2",
    "openai-gpt-oss-120b": "harmony",
    "unsloth-Apriel-1.5": "apriel",
}


def _real_templates() -> list[Any]:
    found = [path for path in templates() if path.stem in FAMILIES]
    if not found:
        reason = f"{SOURCE_VARIABLE} does not name a folder with llama.cpp's sources"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="absent")]
    return [pytest.param(path, id=path.stem) for path in found]


@pytest.mark.parametrize("path", _real_templates())
def test_real_templates_are_recognised_and_their_own_history_is_read_back(path: Path) -> None:
    """A call that the template wrote into the prompt is what the parser would make of it."""
    source = path.read_text(encoding="utf-8")
    renderer, planner = planned(source)
    assert planner.tool_format.name == FAMILIES[path.stem]
    text = renderer.render(planner.prepare(ChatPrompt(HISTORY, tools=(WEATHER,))))[0]
    assert "get_weather" in text.partition("Question?")[0] or "SUNNY" in text
    written = text.rpartition("Question?")[2].partition("SUNNY")[0]
    if planner.tool_format.is_whole:
        written = written[written.rfind("get_weather", 0, written.rfind("city")) - len(" to=functions.") :]
        written = written.removeprefix("header_id|>\n\n").partition("<|call|>")[0].rpartition(">>>")[2]
    if planner.tool_format.is_at_start:
        written = written[written.index(planner.tool_format.opening) :]
    form = AnswerFormat(planner.tool_format.name, text_arguments={"get_weather": ("city",)})
    parser = AnswerParser(form, new_id=lambda: "id")
    answer = Answer.of([*parser.feed(written), *parser.finish()])
    assert answer.calls, written
    assert (answer.calls[0].name, json.loads(answer.calls[0].arguments)) == ("get_weather", ARGUMENTS)


@pytest.mark.parametrize("path", _real_templates())
def test_real_templates_tell_the_model_of_its_tools(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    text = rendered(source, ChatPrompt((ASKED,), tools=(WEATHER,)))
    assert "get_weather" in text
    assert "Weather of a city" in text
    assert "Question?" in text
