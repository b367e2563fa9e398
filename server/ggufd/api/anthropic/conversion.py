"""Conversion of a Messages request to the chat request that the rest of the server knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ggufd.api.anthropic.blocks import ChatMessages
from ggufd.api.anthropic.schemas import MessagesRequest, PromptRequest
from ggufd.api.request.chat.schemas import ChatRequest
from ggufd.api.request.fields import OPENAI_CHAT, shared, two_constraints
from ggufd.api.request.origins import Origins
from ggufd.api.request.validation import invalid_field, validate
from ggufd.errors import Unsupported

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def to_chat(fields: PromptRequest, body: Mapping[str, Any]) -> tuple[ChatRequest, Origins]:
    """The chat request, and where its parts came from.

    `body` is what was sent, for the fields that both requests have. Raises InvalidRequest.
    """
    origins = Origins()
    messages = ChatMessages(origins)
    messages.add_system(fields.system)
    messages.add_all(fields.messages)
    chat = {
        **shared(body, type(fields).model_fields),
        "messages": messages.messages,
        **_tools(fields, origins),
        **_thinking(fields.thinking, origins),
        **_output(fields, body, origins),
    }
    if isinstance(fields, MessagesRequest):
        chat |= {"max_tokens": fields.max_tokens, "stream": fields.stream}
    with origins.in_errors():
        return validate(ChatRequest, chat, OPENAI_CHAT), origins


def _tools(fields: PromptRequest, origins: Origins) -> dict[str, Any]:
    tools = [_tool(tool, f"tools[{index}]", origins) for index, tool in enumerate(fields.tools)]
    return {"tools": tools, **_choice(fields.tool_choice)}


def _tool(tool: Any, path: str, origins: Origins) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        raise invalid_field(path, "expected an object with 'name' and 'input_schema'")
    if tool.get("type") not in ("custom", None):
        raise Unsupported(
            f"'{path}.type': this server runs no tools itself, so only 'custom' is possible.", param=f"{path}.type"
        )
    if not isinstance(tool.get("input_schema"), Mapping):
        raise invalid_field(f"{path}.input_schema", "expected a JSON schema of the type 'object'")
    origins.note(f"{path}.function", path)
    origins.note(f"{path}.function.parameters", f"{path}.input_schema")
    function = {name: tool[name] for name in ("name", "description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": {**function, "parameters": tool["input_schema"]}}


def _choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    if not choice:
        return {}
    one_call = choice.get("disable_parallel_tool_use")
    if not isinstance(one_call, (bool, type(None))):
        raise invalid_field("tool_choice.disable_parallel_tool_use", "expected true or false")
    return {"tool_choice": _wanted(choice), "parallel_tool_calls": None if one_call is None else not one_call}


def _wanted(choice: Mapping[str, Any]) -> Any:
    kind = choice.get("type")
    if kind == "tool":
        if not isinstance(choice.get("name"), str):
            raise invalid_field("tool_choice.name", "expected the name of one of the tools")
        return {"type": "function", "function": {"name": choice["name"]}}
    if not isinstance(kind, str) or kind not in _CHOICES:
        raise invalid_field("tool_choice.type", "expected one of auto, any, tool, none")
    return _CHOICES[kind]


def _thinking(thinking: Mapping[str, Any], origins: Origins) -> dict[str, Any]:
    """A budget where one is given, none where thinking is off; else the model does as it does."""
    origins.note("reasoning_budget", "thinking.budget_tokens")
    match thinking.get("type"):
        case "enabled":
            if thinking.get("budget_tokens") is None:
                raise invalid_field("thinking.budget_tokens", "is required but missing")
            return {"reasoning_budget": thinking["budget_tokens"]}
        case "disabled":
            return {"reasoning_budget": 0}
        case "adaptive" | "between_tools":
            return {}
    if thinking:
        raise invalid_field("thinking.type", "expected one of enabled, disabled, adaptive, between_tools")
    return {}


def _output(fields: PromptRequest, body: Mapping[str, Any], origins: Origins) -> dict[str, Any]:
    """The effort, and the schema that binds the answer; older clients send that as `output_format`."""
    origins.note("reasoning_effort", "output_config.effort")
    chat = {"reasoning_effort": fields.output_config.get("effort")}
    asked = {
        "output_config.format": fields.output_config.get("format"),
        "output_format": fields.output_format,
        "response_format": body.get("response_format"),
    }
    found = [name for name, wanted in asked.items() if wanted is not None]
    if len(found) > 1:
        raise two_constraints(*found)
    if not found or found == ["response_format"]:
        return chat
    name, wanted = found[0], asked[found[0]]
    origins.note("response_format", name)
    origins.note("response_format.json_schema", name)
    if not isinstance(wanted, Mapping) or wanted.get("type") != "json_schema":
        raise invalid_field(f"{name}.type", "expected 'json_schema'")
    if not isinstance(wanted.get("schema"), Mapping):
        raise invalid_field(f"{name}.schema", "expected a JSON schema, which is an object")
    inner = {"name": "answer", "schema": wanted["schema"]}
    return {**chat, "response_format": {"type": "json_schema", "json_schema": inner}}
