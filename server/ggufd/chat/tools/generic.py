"""Tools for templates without tool support: a tool prompt, and a history in which calls are text.

Where the template shows no format of its own, calls are Hermes' `<tool_call>` blocks. Results come back in
`<tool_response>` blocks.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ggufd.chat.content import text_of

_JOINT = "\n\n"

_SEVERAL = "To call several, write them one after another."
_OPTIONAL = "If no tool is needed, just answer."
_REQUIRED = "Call a tool now."
_EXAMPLE = ("name_of_the_tool", {"name_of_an_argument": "its value"})

Write = Callable[[Sequence[tuple[str, Any]]], str]
"""Calls, each a name and arguments, as a model writes them."""


def tool_prompt(tools: Sequence[Mapping[str, Any]], write: Write, *, is_required: bool, may_repeat: bool) -> str:
    """Prompt that describes `tools` (OpenAI's shape) and how to call them."""
    lines = [json.dumps(_shown(tool["function"]), ensure_ascii=False) for tool in tools]
    how = ["To call a tool, write this, and nothing after it:", write([_EXAMPLE])]
    rules = [*how, *([_SEVERAL] if may_repeat else []), _REQUIRED if is_required else _OPTIONAL]
    return "\n".join(["You can call these tools:", *lines, "", *rules])


def _shown(function: Mapping[str, Any]) -> dict[str, Any]:
    return {name: function[name] for name in ("name", "description", "parameters") if function.get(name)}


def with_prompt(messages: Sequence[Mapping[str, Any]], prompt: str) -> tuple[Mapping[str, Any], ...]:
    """Messages with the prompt before the system message's content, or as a new system message."""
    first = messages[0] if messages else {}
    if first.get("role") not in ("system", "developer"):
        return ({"role": "system", "content": prompt}, *messages)
    content = first.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []
    return ({**first, "content": [{"type": "text", "text": prompt + _JOINT[1:]}, *parts]}, *messages[1:])


def as_text(message: Mapping[str, Any], write: Write) -> Mapping[str, Any]:
    """Message with its calls written into the assistant's content."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    parts = [text_of(message.get("content") or ""), write([read_call(call) for call in calls])]
    return {"role": "assistant", "content": "\n".join([part for part in parts if part])}


def read_call(call: Mapping[str, Any]) -> tuple[str, Any]:
    """Name and arguments of a call in OpenAI's shape; arguments that are not JSON stay text."""
    function = call.get("function") or {}
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    return function.get("name", ""), arguments


def result_as_text(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Tool result as a user message."""
    if message["role"] != "tool":
        return message
    return {"role": "user", "content": f"<tool_response>\n{text_of(message.get('content') or '')}\n</tool_response>"}
