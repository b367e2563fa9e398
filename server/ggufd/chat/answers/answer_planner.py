"""Answer planner: the format in which an answer is parsed, and the grammar that constrains it.

The tool format and reasoning tags are detected once, from the template's text; the grammar is built for each
conversation, from its tools and the end of its prompt.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ggufd.chat.deltas.thinking import USUAL, Thinking, opened_by, thinking_of
from ggufd.chat.prompt import AnswerFormat, ChatPrompt, ToolMode, any_arguments
from ggufd.chat.tools.base import ToolFormat
from ggufd.chat.tools.formats.families import BY_NAME, GENERIC, format_of
from ggufd.chat.tools.generic import as_text, result_as_text, tool_prompt, with_prompt
from ggufd.chat.tools.grammar import Calling, answer_grammar
from ggufd.chat.tools.rules import GrammarRules, Tool, literal, text_arguments
from ggufd.errors import InvalidRequest

Split = Callable[[str], Sequence[int | str]]
"""Splits a text into special tokens (ids) and the texts between them."""

_OBJECT_KEYWORDS = {"type", "properties", "required", "additionalProperties"}
_MAX_TRIED = 64
"""Properties that are looked at one by one: each is compiled."""


_NO_CALLS: Sequence[tuple[str, Any]] = (("", {}),)


@dataclasses.dataclass(frozen=True, slots=True)
class AnswerPlan:
    """Format and grammar of one answer; see `RenderedChat`.

    `reasoning` are its tags, without the opening one where the prompt ends inside reasoning; None without reasoning.
    """

    form: AnswerFormat
    shown: tuple[int, ...]
    grammar: str | None
    frame: str | None
    loosened: tuple[str, ...]
    reasoning: Thinking | None


class AnswerPlanner:
    """Planner of the answers of one model. `thinking` are its reasoning tags, None for a model without reasoning.

    `knows_tools` says that the template writes tools into the prompt, `carries_calls` that it writes earlier calls;
    `tool_format` overrides the detected format. `prepare_schema` turns a JSON schema into the form that the grammar
    enforces; it raises InvalidRequest for one that cannot be enforced.
    """

    def __init__(
        self,
        template: str,
        split: Split,
        prepare_schema: Callable[[str], str],
        *,
        knows_tools: bool,
        carries_calls: bool,
        tool_format: str | None = None,
    ) -> None:
        self._split = split
        self._prepare_schema = prepare_schema
        found = BY_NAME[tool_format] if tool_format else format_of(template)
        is_usable = found is not None and (knows_tools or found.write(_NO_CALLS) is not None)
        self.tool_format: ToolFormat = found if found is not None and is_usable else GENERIC
        self._is_generic = self.tool_format is GENERIC
        self._prompts_tools = self._is_generic or not knows_tools
        self._writes_calls = self._is_generic or (self.tool_format.write(_NO_CALLS) is not None and not carries_calls)
        self.thinking = None if self.tool_format.is_whole else thinking_of(template)

    def prepare(self, chat: ChatPrompt) -> ChatPrompt:
        """Conversation as the template gets it: with a tool prompt, and calls as text, where it knows no tools."""
        tools = () if chat.tool_choice.mode is ToolMode.NONE else chat.tools
        messages = chat.messages
        if tools and self._prompts_tools:
            is_required = chat.tool_choice.mode is ToolMode.REQUIRED
            prompt = tool_prompt(tools, self._write, is_required=is_required, may_repeat=self.may_repeat(chat))
            messages = with_prompt(messages, prompt)
        if self._writes_calls:
            messages = tuple(as_text(message, self._write) for message in messages)
        if self._is_generic:
            messages = tuple(result_as_text(message) for message in messages)
        return dataclasses.replace(chat, messages=messages, tools=() if self._prompts_tools else tools)

    def _write(self, calls: Sequence[tuple[str, Any]]) -> str:
        return self.tool_format.write(calls) or ""

    def plan(self, chat: ChatPrompt, prompt: str, begun: str) -> AnswerPlan:
        """Plan of the answer to `chat`, whose prompt ends with `begun` where an answer is continued."""
        thinking = self.thinking
        opened = opened_by(thinking, prompt, begun) if thinking is not None else ""
        calling = self._calling(chat)
        read_as = thinking or (Thinking("", "") if self.tool_format.is_whole else USUAL)
        has_tools = calling is not None and calling.mode is not ToolMode.NONE
        tools, loosened = self._tools(chat) if has_tools else ((), ())
        form = AnswerFormat(
            tool_format=calling.form.name if calling else "",
            opening=read_as.opening,
            closing=read_as.closing,
            opened=opened,
            # Of the enforced schema: a text that is enforced as JSON is read as JSON.
            text_arguments={tool.name: text_arguments(tool.parameters) for tool in tools},
        )
        if thinking is None and calling is None:
            return AnswerPlan(form, (), None, None, (), None)
        grammars = [
            answer_grammar(GrammarRules(tools, self._tag), calling, thinking, is_inside=bool(opened), has_body=has_body)
            for has_body in (False, True)
        ]
        tags = thinking or self.tool_format.reasoning_tags
        reasoning = dataclasses.replace(tags, opening="") if tags is not None and opened else tags
        # Where none of the tools may be called, a format of whole answers could still call one.
        grammar = grammars[0] if calling is not None and chat.tools else None
        return AnswerPlan(form, self._shown(calling, thinking), grammar, grammars[1], loosened, reasoning)

    def _calling(self, chat: ChatPrompt) -> Calling | None:
        choice = chat.tool_choice
        if not chat.tools or choice.mode is ToolMode.NONE:
            return Calling(self.tool_format, ToolMode.NONE, False) if self.tool_format.is_whole else None
        return Calling(self.tool_format, choice.mode, self.may_repeat(chat))

    def may_repeat(self, chat: ChatPrompt) -> bool:
        """Whether the answer may have several calls. Default: only if the template writes tools itself.

        A model that was not trained to call any does not know when to stop.
        """
        choice, wanted = chat.tool_choice, chat.parallel_tool_calls
        is_named = choice.mode is ToolMode.REQUIRED and len(choice.names) == 1
        return not is_named and (not self._prompts_tools if wanted is None else wanted)

    def _tools(self, chat: ChatPrompt) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
        """Tools that may be called, and a repair name for each whose schema is enforced in part only."""
        tools, loosened = [], []
        for index, tool in enumerate(chat.tools):
            function = tool["function"]
            if chat.tool_choice.names and function["name"] not in chat.tool_choice.names:
                continue
            parameters = _closed(_parameters(tool))
            try:
                schema = self._prepared(parameters)
            except InvalidRequest as error:
                if function.get("strict"):
                    error.param = f"tools[{index}].function.parameters"
                    raise
                schema = self._loosened(parameters)
                loosened.append(any_arguments(function["name"]))
            tools.append(Tool(function["name"], schema))
        return tuple(tools), tuple(loosened)

    def _prepared(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        prepared: Mapping[str, Any] = json.loads(self._prepare_schema(json.dumps(schema)))
        return prepared

    def _loosened(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """Enforceable part of a schema: property names, and the values whose schemas can be enforced."""
        properties = schema.get("properties")
        if not isinstance(properties, Mapping) or len(properties) > _MAX_TRIED:
            return {"type": "object"}
        loose = {**schema, "properties": {name: self._or_any(value) for name, value in properties.items()}}
        try:
            return self._prepared({key: value for key, value in loose.items() if key in _OBJECT_KEYWORDS})
        except InvalidRequest:
            return {"type": "object"}

    def _or_any(self, schema: Any) -> Any:
        """Schema of one value; where it cannot be enforced, that of any value of its type."""
        if not isinstance(schema, Mapping):
            return schema
        try:
            self._prepared(schema)
        except InvalidRequest:
            return {"type": schema["type"]} if "type" in schema else {}
        return schema

    def _shown(self, calling: Calling | None, thinking: Thinking | None) -> tuple[int, ...]:
        tags = (*(calling.form.tags if calling else ()), *((thinking.opening, thinking.closing) if thinking else ()))
        parts = [part for tag in tags if tag for part in self._split(tag)]
        return tuple(dict.fromkeys(part for part in parts if isinstance(part, int)))

    def _tag(self, text: str) -> str:
        return " ".join(f"<[{part}]>" if isinstance(part, int) else literal(part) for part in self._split(text))


def _parameters(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters: Mapping[str, Any] = tool["function"].get("parameters") or {}
    return parameters


def _closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Schema without additional properties: the tool would refuse arguments that its schema does not name."""
    is_listed = "properties" in schema or not schema
    if is_listed and "additionalProperties" not in schema and "patternProperties" not in schema:
        return {**schema, "type": "object", "additionalProperties": False}
    return {**schema, "type": "object"}
