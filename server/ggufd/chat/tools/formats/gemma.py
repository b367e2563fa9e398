"""gemma 4: calls in a JSON-like form with bare keys, and strings between tags.

`<|tool_call>call:look{deep:true,place:<|"|>Paris<|"|>}<tool_call|>`, with the arguments by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ggufd.chat.deltas.reader import MAX_DEPTH, Emit, MalformedError, Reader, Steps
from ggufd.chat.deltas.writer import AnswerWriter
from ggufd.chat.tools.base import TextArguments, ToolFormat, as_json, close_calls
from ggufd.chat.tools.rules import NOTES, GrammarRules, Tool, in_order, json_items, key, literal, more, property_schema

_QUOTE = '<|"|>'
_MARKS = '":,{}'


@dataclass(frozen=True, kw_only=True)
class GemmaCalls(ToolFormat):
    """Gemma's calls, each in tags of its own. Values with more than a type in their schema are enforced as JSON."""

    opening: str = "<|tool_call>"
    closing: str = "<tool_call|>"

    @property
    def tags(self) -> tuple[str, ...]:
        return self.opening, self.closing, _QUOTE

    def write(self, calls: Sequence[tuple[str, Any]]) -> str | None:
        return "".join(f"{self.opening}call:{name}{_written(arguments)}{self.closing}" for name, arguments in calls)

    def read_calls(self, reader: Reader, answer: AnswerWriter, texts: TextArguments) -> Steps[None]:
        yield from reader.blanks()
        yield from reader.expect("call:")
        name = (yield from reader.name("{")).strip()
        if not name:
            raise MalformedError
        answer.begin(name)
        yield from _read_object(reader, answer.arguments, 1)
        yield from close_calls(reader, self.closing)

    def calls(self, rules: GrammarRules, *, may_repeat: bool) -> str:
        call = rules.choice("call", lambda index, tool: _call(rules, index, tool))
        closing = rules.tag(self.closing)
        again = more(f"/\\s?/ {rules.tag(self.opening)} {call} {closing}") if may_repeat else ""
        return f"{call} {closing} {again}"


def _by_name(names: Mapping[str, Any]) -> list[str]:
    """Arguments in the order of Jinja's `dictsort`."""
    return sorted(names, key=str.lower)


def _written(value: Any) -> str:
    if isinstance(value, str):
        return f"{_QUOTE}{value}{_QUOTE}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key(name, _MARKS)}:{_written(value[name])}" for name in _by_name(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    return json.dumps(value)


# --- reading: each function passes JSON on ----------------------------------------------------------------------------


def _read_object(reader: Reader, emit: Emit, depth: int) -> Steps[None]:
    """Parse an object from after its opening bracket, closing one included."""

    def read_item(separator: str) -> Steps[None]:
        name = yield from _read_key(reader)
        emit(f"{separator}{json.dumps(name, ensure_ascii=False)}: ")
        yield from _read_value(reader, emit, depth)

    yield from _read_items(reader, emit, ("{", "}"), read_item)


def _read_list(reader: Reader, emit: Emit, depth: int) -> Steps[None]:
    def read_item(separator: str) -> Steps[None]:
        emit(separator)
        yield from _read_value(reader, emit, depth)

    yield from _read_items(reader, emit, ("[", "]"), read_item)


def _read_items(
    reader: Reader, emit: Emit, brackets: tuple[str, str], read_item: Callable[[str], Steps[None]]
) -> Steps[None]:
    opening, closing = brackets
    emit(opening)
    separator = ""
    yield from reader.blanks()
    while not (yield from reader.skip(closing)):
        yield from read_item(separator)
        separator = ", "
        yield from reader.blanks()
        yield from reader.skip(",")
        yield from reader.blanks()
    emit(closing)


def _read_key(reader: Reader) -> Steps[str]:
    if (yield from reader.skip(_QUOTE)):
        name = yield from reader.name(_QUOTE)
    elif (yield from reader.peek()) == '"':
        name = yield from reader.json_string()
    else:
        return (yield from reader.name(":")).strip()
    yield from reader.blanks()
    yield from reader.expect(":")
    return name


def _read_value(reader: Reader, emit: Emit, depth: int) -> Steps[None]:
    if depth > MAX_DEPTH:
        raise MalformedError
    yield from reader.blanks()
    if (yield from reader.skip(_QUOTE)):
        yield from _read_text(reader, emit)
    elif (yield from reader.skip("{")):
        yield from _read_object(reader, emit, depth + 1)
    elif (yield from reader.skip("[")):
        yield from _read_list(reader, emit, depth + 1)
    elif (yield from reader.peek()) == '"':
        yield from reader.json_value(emit)
    else:
        yield from _read_word(reader, emit)


def _read_text(reader: Reader, emit: Emit) -> Steps[None]:
    emit('"')
    if not (yield from reader.until((_QUOTE,), lambda text: emit(json.dumps(text, ensure_ascii=False)[1:-1]))):
        raise MalformedError
    emit('"')


def _read_word(reader: Reader, emit: Emit) -> Steps[None]:
    parts: list[str] = []
    yield from reader.json_value(parts.append)
    if not parts:
        raise MalformedError
    emit(as_json("".join(parts)))


# --- the grammar ----------------------------------------------------------------------------------------------------


def _call(rules: GrammarRules, index: int, tool: Tool) -> str:
    arguments = _object(rules, f"object_{index}", tool.parameters)
    return f"{literal(f'call:{tool.name}')} {arguments or rules.arguments(index)}"


def _object(rules: GrammarRules, name: str, schema: Mapping[str, Any]) -> str | None:
    """Rule of an object whose names are all known; None for any other."""
    properties: Mapping[str, Any] = schema.get("properties") or {}
    if schema.get("additionalProperties") is not False or "patternProperties" in schema:
        return None
    required = schema.get("required") or ()
    items = []
    for place, one in enumerate(_by_name(properties)):
        value = rules.add(f"{name}_{place}_value", _value(rules, f"{name}_{place}", property_schema(schema, one)))
        items.append((f"{literal(key(one, _MARKS) + ':')} {value}", one in required))
    return f'"{{" {in_order(rules, name, items)} "}}"'


def _value(rules: GrammarRules, name: str, schema: Any) -> str:
    """Rule of a value: in this format where it can enforce the whole schema, else as JSON."""
    keywords = set(schema) - NOTES if isinstance(schema, Mapping) else set()
    quote = rules.tag(_QUOTE)
    match schema:
        case {"type": "string"} if keywords == {"type"}:
            return f"{quote} {rules.up_to(f'{name}_text', _QUOTE)}"
        case {"enum": [*options]} if keywords <= {"type", "enum"} and all(isinstance(one, str) for one in options):
            return " | ".join(f"{quote} {literal(option)} {quote}" for option in options)
        case {"type": "array", "items": items} if keywords == {"type", "items"}:
            item = rules.add(f"{name}_item", _value(rules, f"{name}_items", items))
            return f'"[" ({item} (/,\\s?/ {item})*)? "]"'
        case {"type": "object"} if keywords <= {"type", "properties", "required", "additionalProperties"}:
            return _object(rules, name, schema) or json_items(schema)
    return json_items(schema)
