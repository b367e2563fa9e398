"""Conversion of a Responses request to the chat request that the rest of the server knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ggufd.api.openai.responses.items import Item, Messages
from ggufd.api.openai.responses.schemas import ResponseRequest
from ggufd.api.request.chat.schemas import ChatRequest
from ggufd.api.request.chat.tools import check_tool_kind
from ggufd.api.request.fields import OPENAI_CHAT, shared, two_constraints
from ggufd.api.request.origins import Origins
from ggufd.api.request.validation import invalid_field, validate
from ggufd.errors import InvalidRequest, Unsupported

_FORMATS = ("text", "json_object", "json_schema")


def to_chat(
    fields: ResponseRequest, body: Mapping[str, Any], past: Sequence[Item], items: Sequence[Item]
) -> tuple[ChatRequest, Origins]:
    """The chat request for `items` after the `past` ones, and where its parts came from.

    `body` is what was sent, for the fields that both requests have. Raises InvalidRequest.
    """
    origins = Origins()
    origins.note("max_completion_tokens", "max_output_tokens")
    chat = {
        **shared(body, type(fields).model_fields),
        **_messages(fields, past, items, origins),
        **_tools(fields, origins),
        **_format(fields, body, origins),
        **_reasoning(fields, origins),
        "max_completion_tokens": fields.max_output_tokens,
        "stream": fields.stream,
        "verbosity": fields.text.get("verbosity"),
        "logprobs": fields.has_logprobs or None,
        "top_logprobs": fields.top_logprobs if fields.has_logprobs else None,
    }
    with origins.in_errors():
        return validate(ChatRequest, chat, OPENAI_CHAT), origins


def _messages(fields: ResponseRequest, past: Sequence[Item], items: Sequence[Item], origins: Origins) -> dict[str, Any]:
    if not past and not items:
        raise InvalidRequest("'input': is required but missing.", param="input")
    messages = Messages(origins)
    if fields.instructions:
        messages.add_system(fields.instructions, "instructions")
    messages.add_past(past)
    messages.add_all(items)
    origins.note("messages", "input")
    return {"messages": messages.messages}


def _tools(fields: ResponseRequest, origins: Origins) -> dict[str, Any]:
    for index in range(len(fields.tools)):
        origins.note(f"tools[{index}].function", f"tools[{index}]")
    return {
        "tools": [_tool(tool, f"tools[{index}]") for index, tool in enumerate(fields.tools)],
        "tool_choice": _choice(fields.tool_choice),
        "parallel_tool_calls": fields.parallel_tool_calls,
    }


def _tool(tool: Any, path: str) -> Any:
    """A function as a chat request has it: one level deeper."""
    if not isinstance(tool, Mapping):
        raise invalid_field(path, "expected an object with 'type' and 'name'")
    check_tool_kind(tool, path)
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _choice(choice: Any) -> Any:
    kind = choice.get("type") if isinstance(choice, Mapping) else "function"
    if kind not in ("function", "allowed_tools"):
        raise Unsupported(
            "'tool_choice.type': this server runs no tools itself: only 'function' and 'allowed_tools' are possible.",
            param="tool_choice.type",
        )
    return choice


def _format(fields: ResponseRequest, body: Mapping[str, Any], origins: Origins) -> dict[str, Any]:
    """`text.format` as `response_format`, whose schema lies one level deeper; one of that name is left as it is."""
    wanted = fields.text.get("format")
    if wanted is None:
        return {}
    if body.get("response_format") is not None:
        raise two_constraints("text.format", "response_format")
    origins.note("response_format", "text.format")
    origins.note("response_format.json_schema", "text.format")
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind not in _FORMATS:
        raise invalid_field("text.format.type", f"expected one of {', '.join(_FORMATS)}")
    if kind != "json_schema":
        return {"response_format": dict(wanted)}
    if not isinstance(wanted.get("schema"), Mapping):
        raise invalid_field("text.format.schema", "expected a JSON schema, which is an object")
    inner = {name: value for name, value in wanted.items() if name != "type"}
    return {"response_format": {"type": kind, "json_schema": inner}}


def _reasoning(fields: ResponseRequest, origins: Origins) -> dict[str, Any]:
    origins.note("reasoning_effort", "reasoning.effort")
    return {"reasoning_effort": fields.reasoning.get("effort")}
