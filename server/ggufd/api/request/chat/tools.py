"""Validation of OpenAI's `tools` and `tool_choice`. Knows no template and no format that a model calls tools in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ggufd.api.request.validation import invalid_field
from ggufd.chat.prompt import ToolChoice, ToolMode
from ggufd.errors import Unsupported

MAX_TOOLS = 512

_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_MODES = {
    "none": ToolMode.NONE,
    "auto": ToolMode.AUTO,
    "required": ToolMode.REQUIRED,
    "any": ToolMode.REQUIRED,
}


def read_tools(value: Any) -> tuple[dict[str, Any], ...]:
    """The tools, each with a `function` that has name, description and parameters. Raises InvalidRequest."""
    if not isinstance(value, list):
        raise invalid_field("tools", "expected an array of tools")
    if len(value) > MAX_TOOLS:
        raise invalid_field("tools", f"expected at most {MAX_TOOLS} tools, got {len(value)}")
    tools = tuple(_read_tool(tool, f"tools[{index}]") for index, tool in enumerate(value))
    names = [tool["function"]["name"] for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise invalid_field(f"tools[{index}].function.name", f"there are two tools of the name {name!r}")
    return tools


def check_tool_kind(tool: Mapping[str, Any], path: str) -> None:
    """Raises Unsupported for a tool that the server itself would have to run."""
    if tool.get("type", "function") != "function":
        raise Unsupported(
            f"'{path}.type': this server runs no tools itself, so only 'function' is possible.", param=f"{path}.type"
        )


def _read_tool(tool: Any, path: str) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        raise invalid_field(path, "expected an object with 'type' and 'function'")
    check_tool_kind(tool, path)
    return {"type": "function", "function": _read_function(tool.get("function"), f"{path}.function")}


def _read_function(function: Any, path: str) -> dict[str, Any]:
    if not isinstance(function, Mapping):
        raise invalid_field(path, "expected an object with 'name' and 'parameters'")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise invalid_field(f"{path}.name", "expected 1 to 128 of the characters A-Z a-z 0-9 _ - . : /")
    description = "" if function.get("description") is None else function["description"]
    if not isinstance(description, str):
        raise invalid_field(f"{path}.description", "expected a string")
    parameters = _read_parameters(function.get("parameters"), f"{path}.parameters")
    strict = function.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise invalid_field(f"{path}.strict", "expected true or false")
    read = {"name": name, "description": description, "parameters": dict(parameters)}
    return {**read, "strict": True} if strict else read


def _read_parameters(value: Any, path: str) -> Mapping[str, Any]:
    """The schema of the arguments. Some languages write an empty object as an empty array, or as a text."""
    if value in (None, "", [], {}):
        return {"type": "object", "properties": {}}
    if not isinstance(value, Mapping) or value.get("type", "object") != "object":
        raise invalid_field(path, "expected a JSON schema of the type 'object'")
    _check_shape(value, path)
    return value


def _check_shape(parameters: Mapping[str, Any], path: str) -> None:
    """What templates walk through, whether or not the schema is held to."""
    properties, required = (parameters.get(name) for name in ("properties", "required"))
    if not isinstance(properties, (Mapping, type(None))):
        raise invalid_field(f"{path}.properties", "expected an object of names and their schemas")
    for name, schema in (properties or {}).items():
        if not isinstance(schema, (Mapping, bool)):
            raise invalid_field(f"{path}.properties.{name}", "expected a JSON schema")
    is_list = isinstance(required, list) and all(isinstance(name, str) for name in required)
    if required is not None and not is_list:
        raise invalid_field(f"{path}.required", "expected an array of names")


def read_tool_choice(value: Any) -> ToolChoice:
    """Whether a tool may or must be called, and which. Raises InvalidRequest."""
    if isinstance(value, str) and value in _MODES:
        return ToolChoice(_MODES[value])
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "function":
        return ToolChoice(ToolMode.REQUIRED, (_name_in(value, "tool_choice"),))
    if kind == "allowed_tools":
        inner = value.get("allowed_tools")
        return _read_allowed(inner if isinstance(inner, Mapping) else value)
    raise invalid_field(
        "tool_choice",
        "expected 'none', 'auto', 'required' or an object such as {'type': 'function', 'function': {'name': '...'}}",
    )


def _read_allowed(value: Mapping[str, Any]) -> ToolChoice:
    mode, tools = value.get("mode", "auto"), value.get("tools")
    if mode not in ("auto", "required"):
        raise invalid_field("tool_choice.mode", "expected 'auto' or 'required'")
    if not isinstance(tools, list) or not tools:
        raise invalid_field("tool_choice.tools", "expected a non-empty array of tools")
    return ToolChoice(_MODES[mode], tuple(_name_in(tool, f"tool_choice.tools[{i}]") for i, tool in enumerate(tools)))


def _name_in(value: Any, path: str) -> str:
    """The name of a function, inside `function` or beside the type."""
    if isinstance(value, Mapping) and value.get("type", "function") != "function":
        raise invalid_field(f"{path}.type", "expected 'function'")
    inner = value.get("function", value) if isinstance(value, Mapping) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(name, str):
        raise invalid_field(f"{path}.function.name", "expected the name of one of the tools")
    return name


def check_choice(tools: tuple[Mapping[str, Any], ...], choice: ToolChoice) -> None:
    """Raises InvalidRequest when the choice names a tool that is not there, or needs one where none is."""
    names = [tool["function"]["name"] for tool in tools]
    for name in choice.names:
        if name not in names:
            there = ", ".join(names) or "none"
            raise invalid_field("tool_choice", f"there is no tool of the name {name!r}; the tools are: {there}")
    if choice.mode is ToolMode.REQUIRED and not tools:
        raise invalid_field("tool_choice", "a call is required, but no tools were sent")
