"""Tools for models whose template knows none: a prompt that tells of them, and a history in which calls are text.

The format is Hermes': `<tool_call>` blocks with JSON in them, answered by `<tool_response>` blocks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from server.chat.content import text_of

_JOINT = "\n\n"

_HOW = """\
To call a tool, write a block like this, and nothing after it:
<tool_call>
{"name": "name of the tool", "arguments": {"name of an argument": "its value"}}
</tool_call>"""
_SEVERAL = "To call several, write several such blocks."
_OPTIONAL = "If no tool is needed, just answer."
_REQUIRED = "Call a tool now."


def tool_prompt(tools: Sequence[Mapping[str, Any]], *, is_required: bool, may_repeat: bool) -> str:
    """What the model is told of `tools`, which are in OpenAI's shape."""
    lines = [json.dumps(_shown(tool["function"]), ensure_ascii=False) for tool in tools]
    rules = [_HOW, *([_SEVERAL] if may_repeat else []), _REQUIRED if is_required else _OPTIONAL]
    return "\n".join(["You can call these tools:", *lines, "", *rules])


def _shown(function: Mapping[str, Any]) -> dict[str, Any]:
    return {name: function[name] for name in ("name", "description", "parameters") if function.get(name)}


def with_prompt(messages: Sequence[Mapping[str, Any]], prompt: str) -> tuple[Mapping[str, Any], ...]:
    """The messages with the prompt before what the system says, or as what it says."""
    first = messages[0] if messages else {}
    if first.get("role") not in ("system", "developer"):
        return ({"role": "system", "content": prompt}, *messages)
    content = first.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []
    return ({**first, "content": [{"type": "text", "text": prompt + _JOINT[1:]}, *parts]}, *messages[1:])


def as_text(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message without fields for calls: they are what the assistant said, a result is what the user says."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{text_of(message['content'])}\n</tool_response>"}
    if not message.get("tool_calls"):
        return message
    parts = [text_of(message.get("content") or ""), *map(_block, message["tool_calls"])]
    return {"role": "assistant", "content": "\n".join([part for part in parts if part])}


def _block(call: Mapping[str, Any]) -> str:
    function = call.get("function", {})
    arguments = function.get("arguments") or "{}"
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    name = json.dumps(function.get("name", ""), ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {text}}}\n</tool_call>'
