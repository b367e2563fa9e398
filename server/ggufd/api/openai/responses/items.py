"""Conversion of Responses items, the parts of a conversation in this API, to chat messages.

An assistant's turn is one chat message, and here several items in a row: reasoning, text, calls.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ggufd.api.request.origins import Origins
from ggufd.api.request.validation import invalid_field
from ggufd.errors import Unsupported

Item = dict[str, Any]

ROLES = ("user", "assistant", "system", "developer")
_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
KINDS = (*_PREFIXES, "item_reference")


def new_item_id(kind: str) -> str:
    """A new id such as `msg_0123...`."""
    return f"{_PREFIXES[kind]}_{uuid.uuid4().hex}"


def read_input(value: Any) -> list[Item]:
    """The `input` as items, each with its `type`; a string is a user's message. Raises InvalidRequest."""
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list):
        raise invalid_field("input", "expected a string or an array of items")
    return [_read_item(item, f"input[{index}]") for index, item in enumerate(value)]


def _read_item(item: Any, path: str) -> Item:
    if not isinstance(item, Mapping):
        raise invalid_field(path, "expected an object, such as {'role': 'user', 'content': '...'}")
    kind = _kind(item)
    if kind not in KINDS:
        raise Unsupported(
            f"'{path}.type': this server knows items of the types {', '.join(KINDS)}.", param=f"{path}.type"
        )
    _check_text(item, "id", path, may_lack=True)
    _CHECKS[kind](item, path)
    return {**item, "type": kind}


def _kind(item: Mapping[str, Any]) -> Any:
    """Messages may lack their type, and so may references, which are an id and nothing more."""
    if (kind := item.get("type")) is not None:
        return kind
    return "item_reference" if set(item) <= {"id", "type"} and item else "message"


def _check_message(item: Mapping[str, Any], path: str) -> None:
    if item.get("role") not in ROLES:
        raise invalid_field(f"{path}.role", f"expected one of {', '.join(ROLES)}")
    if not isinstance(item.get("content"), (str, list)):
        raise invalid_field(f"{path}.content", "expected a string or an array of content parts")


def _check_call(item: Mapping[str, Any], path: str) -> None:
    for name in ("call_id", "name", "arguments"):
        _check_text(item, name, path)


def _check_output(item: Mapping[str, Any], path: str) -> None:
    _check_text(item, "call_id", path)
    if not isinstance(item.get("output"), (str, list)):
        raise invalid_field(f"{path}.output", "expected a string or an array of content parts")


def _check_reasoning(item: Mapping[str, Any], path: str) -> None:
    for name in ("content", "summary"):
        parts = item.get(name)
        if parts is None:
            continue
        if not isinstance(parts, list):
            raise invalid_field(f"{path}.{name}", "expected an array of parts")
        for index, part in enumerate(parts):
            if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
                raise invalid_field(f"{path}.{name}[{index}]", "expected a part with 'type' and 'text'")


def _check_reference(item: Mapping[str, Any], path: str) -> None:
    _check_text(item, "id", path)


_CHECKS: Mapping[str, Callable[[Mapping[str, Any], str], None]] = {
    "message": _check_message,
    "function_call": _check_call,
    "function_call_output": _check_output,
    "reasoning": _check_reasoning,
    "item_reference": _check_reference,
}


def _check_text(item: Mapping[str, Any], name: str, path: str, *, may_lack: bool = False) -> None:
    value = item.get(name)
    if not isinstance(value, str) and not (may_lack and value is None):
        raise invalid_field(f"{path}.{name}", "expected a string")


def all_listed(items: Iterable[Item]) -> list[Item]:
    """Sent items as they are kept and listed. Of those with one id only the first keeps it: pages go on after an id."""
    seen: set[str] = set()
    found = []
    for item in items:
        whole = listed(item)
        if whole["id"] in seen:
            whole["id"] = new_item_id(whole["type"])
        seen.add(whole["id"])
        found.append(whole)
    return found


def listed(item: Item) -> Item:
    """A sent item as it is kept and listed: with an id, and a message's text as parts."""
    kind = item["type"]
    whole = {**item, "id": item.get("id") or new_item_id(kind)}
    if kind == "message":
        part = "output_text" if item["role"] == "assistant" else "input_text"
        content = item["content"]
        if isinstance(content, str):
            content = [{"type": part, "text": content, **({"annotations": []} if part == "output_text" else {})}]
        whole["content"] = content
    if kind != "item_reference":
        whole.setdefault("status", "completed")
    return whole


class Messages:
    """Builder of chat messages from items, in `messages`; `origins` maps each to the item that it came from."""

    def __init__(self, origins: Origins) -> None:
        self.messages: list[dict[str, Any]] = []
        self._origins = origins
        self._turn: dict[str, Any] | None = None

    def add_all(self, items: Iterable[Item], path: str = "input") -> None:
        """Add items; the client knows them as `path[0]`, `path[1]`."""
        for index, item in enumerate(items):
            self._add(item, f"{path}[{index}]")

    def add_past(self, items: Sequence[Item]) -> None:
        """Add items that the client named by `previous_response_id`."""
        for item in items:
            self._add(item, "previous_response_id")

    def add_system(self, text: str, path: str) -> None:
        """Add a system message."""
        self._append({"role": "system", "content": text}, path)

    def _add(self, item: Item, path: str) -> None:
        match item["type"]:
            case "message" if item["role"] == "assistant":
                self._turn_without("content", "tool_calls", path=path)["content"] = item["content"]
                self._note("content", f"{path}.content")
            case "message":
                self._append({"role": item["role"], "content": item["content"]}, path)
            case "reasoning":
                self._turn_without("reasoning_content", "content", "tool_calls", path=path)["reasoning_content"] = (
                    _reasoning_text(item)
                )
            case "function_call":
                self._add_call(item, path)
            case "function_call_output":
                message = {"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]}
                self._append(message, path)
                self._note("tool_call_id", f"{path}.call_id")
                self._note("content", f"{path}.output")

    def _add_call(self, item: Item, path: str) -> None:
        calls = self._turn_without(path=path).setdefault("tool_calls", [])
        function = {"name": item["name"], "arguments": item["arguments"]}
        for ours in ("", ".function"):
            self._note(f"tool_calls[{len(calls)}]{ours}", path)
        self._note(f"tool_calls[{len(calls)}].id", f"{path}.call_id")
        calls.append({"id": item["call_id"], "type": "function", "function": function})

    def _turn_without(self, *names: str, path: str) -> dict[str, Any]:
        """The assistant's message that is being put together, a new one when it has one of `names` already."""
        turn = self._turn
        if turn is None or any(turn.get(name) for name in names):
            turn = {"role": "assistant", "content": ""}
            self._append(turn, path)
            self._turn = turn
        return turn

    def _append(self, message: dict[str, Any], path: str) -> None:
        self._origins.note(f"messages[{len(self.messages)}]", path)
        self.messages.append(message)
        self._turn = None

    def _note(self, below: str, path: str) -> None:
        """Where a part of the last message came from."""
        self._origins.note(f"messages[{len(self.messages) - 1}].{below}", path)


def _reasoning_text(item: Item) -> str:
    """Text of a reasoning item, or its summary."""
    return "".join(part["text"] for part in item.get("content") or item.get("summary") or ())
