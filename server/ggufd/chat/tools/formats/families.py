"""Registry of the tool call formats, and detection of a template's format."""

from __future__ import annotations

from ggufd.chat.tools.base import ToolFormat
from ggufd.chat.tools.formats.functionary import FunctionaryParts
from ggufd.chat.tools.formats.gemma import GemmaCalls
from ggufd.chat.tools.formats.harmony import Harmony
from ggufd.chat.tools.formats.json_calls import BareJsonCalls, JsonCalls
from ggufd.chat.tools.formats.named import NamedCalls
from ggufd.chat.tools.formats.pythonic import PythonicCalls
from ggufd.chat.tools.formats.tagged import TaggedCalls

GENERIC = JsonCalls(name="generic", signs=(), opening="<tool_call>", closing="</tool_call>")
"""For models whose template knows no tools: Hermes' tags, which most have seen, and a prompt of our own."""


def _dsml(name: str, block: str) -> TaggedCalls:
    """DeepSeek's markup (DSML), in which arguments say whether they are strings; `block` its tag of a list of calls."""
    return TaggedCalls(
        name=name,
        signs=("｜DSML｜", f"{block}>"),
        opening=f"<｜DSML｜{block}>",
        closing=f"</｜DSML｜{block}>",
        before='<｜DSML｜invoke name="',
        between='">',
        after="</｜DSML｜invoke>",
        key_before='<｜DSML｜parameter name="',
        key_after='" string="',
        if_text='true">',
        if_other='false">',
        value_after="</｜DSML｜parameter>",
        is_block=True,
    )


FORMATS: tuple[ToolFormat, ...] = (
    NamedCalls(
        name="mistral",
        signs=("[TOOL_CALLS]", "[ARGS]"),
        opening="[TOOL_CALLS]",
        between="[ARGS]",
        number=r"(\[CALL_ID\][a-zA-Z0-9]*)?",
    ),
    JsonCalls(name="mistral-json", signs=("[TOOL_CALLS]",), opening="[TOOL_CALLS]", is_list=True, id_key="id"),
    _dsml("deepseek-v3.2", "function_calls"),
    _dsml("deepseek-v4", "tool_calls"),
    GemmaCalls(name="gemma-4", signs=("<|tool_call>call:",)),
    TaggedCalls(
        name="minimax-m2",
        signs=("<minimax:tool_call>", "<invoke name="),
        opening="<minimax:tool_call>",
        closing="</minimax:tool_call>",
        before='<invoke name="',
        between='">',
        after="</invoke>",
        key_before='<parameter name="',
        key_after='">',
        value_after="</parameter>",
        is_block=True,
    ),
    NamedCalls(
        name="deepseek-v3.1",
        signs=("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"),
        unless=("```json",),
        opening="<｜tool▁calls▁begin｜>",
        before="<｜tool▁call▁begin｜>",
        between="<｜tool▁sep｜>",
        after="<｜tool▁call▁end｜>",
        closing="<｜tool▁calls▁end｜>",
    ),
    NamedCalls(
        name="deepseek-r1",
        signs=("<｜tool▁calls▁begin｜>",),
        opening="<｜tool▁calls▁begin｜>",
        before="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        between="\n```json\n",
        after="\n```<｜tool▁call▁end｜>",
        closing="<｜tool▁calls▁end｜>",
    ),
    NamedCalls(
        name="kimi-k2",
        signs=("<|tool_calls_section_begin|>",),
        opening="<|tool_calls_section_begin|>",
        before="<|tool_call_begin|>functions.",
        between="<|tool_call_argument_begin|>",
        after="<|tool_call_end|>",
        closing="<|tool_calls_section_end|>",
        number=r":\d{1,4}",
        is_numbered=True,
    ),
    JsonCalls(
        name="command-r7b",
        signs=("<|START_ACTION|>",),
        opening="<|START_ACTION|>",
        closing="<|END_ACTION|>",
        is_list=True,
        name_key="tool_name",
        arguments_key="parameters",
        id_key="tool_call_id",
        id_pattern=r"\d{1,4}",
        is_id_first=True,
    ),
    JsonCalls(
        name="command-r",
        signs=("tool_name", "Action:", "```json"),
        opening="Action:",
        fence="```json",
        closing="```",
        is_list=True,
        name_key="tool_name",
        arguments_key="parameters",
    ),
    NamedCalls(
        name="functionary",
        signs=("<function=",),
        unless=("<parameter=",),
        opening="<function=",
        between=">",
        after="</function>",
    ),
    TaggedCalls(
        name="qwen3-coder",
        signs=("<tool_call>", "<function=", "<parameter="),
        opening="<tool_call>",
        closing="</tool_call>",
        before="<function=",
        between=">",
        after="</function>",
        key_before="<parameter=",
        key_after=">",
        value_after="</parameter>",
        value_edge="\n",
    ),
    TaggedCalls(
        name="seed-oss",
        signs=("<seed:tool_call>", "<function=", "<parameter="),
        opening="<seed:tool_call>",
        closing="</seed:tool_call>",
        before="<function=",
        between=">",
        after="</function>",
        key_before="<parameter=",
        key_after=">",
        value_after="</parameter>",
        edge="",
    ),
    TaggedCalls(
        name="glm",
        signs=("<tool_call>", "<arg_key>", "<arg_value>"),
        opening="<tool_call>",
        closing="</tool_call>",
        key_before="<arg_key>",
        key_after="</arg_key>",
        value_before="<arg_value>",
        value_after="</arg_value>",
    ),
    JsonCalls(
        name="apriel",
        signs=("<tool_calls>[",),
        opening="<tool_calls>",
        closing="</tool_calls>",
        is_list=True,
        id_key="id",
    ),
    PythonicCalls(
        name="lfm2",
        signs=("<|tool_call_start|>",),
        or_signs=("<|tool_list_start|>", "List of tools: ["),
        opening="<|tool_call_start|>",
        closing="<|tool_call_end|>",
    ),
    Harmony(name="harmony", signs=("<|channel|>", "<|message|>", "analysis")),
    FunctionaryParts(name="functionary-3.2", signs=(">>>", "<|start_header_id|>")),
    BareJsonCalls(
        name="llama-3", signs=("<|start_header_id|>", '"parameters"', "tool_calls"), arguments_key="parameters"
    ),
    PythonicCalls(name="pythonic", signs=("[func_name1(",), opening="[", is_at_start=True),
    JsonCalls(name="granite", signs=("<|tool_call|>",), opening="<|tool_call|>", is_list=True),
    JsonCalls(name="nemotron", signs=("<TOOLCALL>",), opening="<TOOLCALL>", closing="</TOOLCALL>", is_list=True),
    JsonCalls(name="firefunction", signs=(" functools",), opening=" functools", is_list=True),
    JsonCalls(
        name="hermes",
        signs=("<tool_call>", "</tool_call>"),
        unless=("arg_key", "<parameter=", "minimax"),
        opening="<tool_call>",
        closing="</tool_call>",
    ),
)
"""The more particular ones first."""

BY_NAME = {one.name: one for one in (*FORMATS, GENERIC)}


def format_of(template: str) -> ToolFormat | None:
    """Format of a template, or None."""
    return next((one for one in FORMATS if one.fits(template)), None)
