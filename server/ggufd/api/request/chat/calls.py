"""Tool calls and their results in a history: validation, and matching of results to calls. Knows no template."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ggufd.api.request.validation import invalid_field


def read_calls(value: Any, path: str, index: int) -> list[dict[str, Any]]:
    """The calls of message `index`, arguments as the text of a JSON object. Raises InvalidRequest that names the place.

    A call without an id gets one of nine letters and digits, which every template takes.
    """
    if not isinstance(value, list):
        raise invalid_field(path, "expected an array of calls")
    calls = [_read_call(call, f"{path}[{place}]", f"call{index:03}{place:02}") for place, call in enumerate(value)]
    ids = [call["id"] for call in calls]
    for place, call_id in enumerate(ids):
        if call_id in ids[:place]:
            raise invalid_field(f"{path}[{place}].id", f"there are two calls of the id {call_id!r}")
    return calls


def _read_call(call: Any, path: str, own_id: str) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise invalid_field(path, "expected an object with 'id', 'type' and 'function'")
    if call.get("type") not in (None, "function"):
        raise invalid_field(f"{path}.type", "expected 'function'")
    call_id = own_id if call.get("id") in (None, "") else call["id"]
    if not isinstance(call_id, str):
        raise invalid_field(f"{path}.id", "expected a string")
    function = call.get("function")
    if not isinstance(function, Mapping):
        raise invalid_field(f"{path}.function", "expected an object with 'name' and 'arguments'")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise invalid_field(f"{path}.function.name", "expected the name of a tool")
    arguments = _read_arguments(function.get("arguments"), f"{path}.function.arguments")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _read_arguments(value: Any, path: str) -> str:
    """As OpenAI has them, also where a client sends the object itself, or nothing where there are none."""
    if value is None or value == "":
        return "{}"
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and _is_object(value):
        return value
    raise invalid_field(path, "expected the text of a JSON object")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def with_results_linked(messages: Sequence[dict[str, Any]], *, in_order: bool = False) -> Iterator[dict[str, Any]]:
    """The messages, each result with the id and the name of its call. Raises InvalidRequest when there is no such call.

    A result without an id must say by its name to which of several calls it belongs, unless results are `in_order`.
    Nothing else may come before all calls have one.
    """
    names: dict[str, str] = {}
    waiting: dict[str, str] = {}
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        if message["role"] == "tool":
            yield _linked(message, path, names, waiting, in_order=in_order)
            continue
        if waiting:
            call_id, call_path = next(iter(waiting.items()))
            raise invalid_field(
                call_path, f"this call has no result; expected a 'tool' message for {call_id!r} before {path}"
            )
        for place, call in enumerate(message.get("tool_calls", ())):
            names[call["id"]] = call["function"]["name"]
            waiting[call["id"]] = f"{path}.tool_calls[{place}]"
        yield message


def _linked(
    message: dict[str, Any], path: str, names: Mapping[str, str], waiting: dict[str, str], *, in_order: bool
) -> dict[str, Any]:
    """A result with its call, which is then no more among those that are `waiting`, places by ids."""
    call_id = message.get("tool_call_id")
    if not call_id:
        called = {waiting_id: names[waiting_id] for waiting_id in waiting}
        call_id = _call_without_id(message.get("name"), path, called, in_order=in_order)
    if call_id not in names:
        known = ", ".join(names) or "none"
        raise invalid_field(f"{path}.tool_call_id", f"no call before it has the id {call_id!r}; the calls are: {known}")
    if waiting.pop(call_id, None) is None:
        raise invalid_field(f"{path}.tool_call_id", f"the call {call_id!r} has a result already")
    return {**message, "tool_call_id": call_id, "name": message.get("name") or names[call_id]}


def _call_without_id(name: str | None, path: str, waiting: Mapping[str, str], *, in_order: bool) -> str:
    """The id of the call, of those that are `waiting` (names by ids), that a result without an id belongs to."""
    if not waiting:
        raise invalid_field(path, "it is the result of a tool, but no call before it waits for one")
    found = [call_id for call_id, called in waiting.items() if name in (None, called)]
    if not found:
        raise invalid_field(path, f"no call of {name!r} waits for a result; those that wait are of: {_listed(waiting)}")
    if len(found) > 1 and not in_order:
        ids = " or ".join(map(repr, found))
        raise invalid_field(f"{path}.tool_call_id", f"is missing, and several calls wait for a result; expected {ids}")
    return found[0]


def _listed(waiting: Mapping[str, str]) -> str:
    return ", ".join(dict.fromkeys(waiting.values()))
