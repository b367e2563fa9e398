"""Formats in which calls are a list of Python calls with keyword arguments: `[look(city="Paris"), clock()]`."""

from __future__ import annotations

import ast
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ggufd.chat.deltas.reader import MAX_DEPTH, MalformedError, Reader, Steps
from ggufd.chat.deltas.writer import AnswerWriter
from ggufd.chat.tools.base import TextArguments, ToolFormat, close_calls
from ggufd.chat.tools.rules import GrammarRules, Tool, in_order, json_items, key, literal, more, property_schema

_NAMES = {"true": True, "false": False, "null": None}
_MAX_CHARS = 200_000
_MARKS = "\"'=,()[]{}"


@dataclass(frozen=True, kw_only=True)
class PythonicCalls(ToolFormat):
    """`opening`, the list, `closing`. An opening of "[" is that of the list itself."""

    closing: str = ""

    @property
    def tags(self) -> tuple[str, ...]:
        return self.opening, self.closing

    def write(self, calls: Sequence[tuple[str, Any]]) -> str | None:
        inner = ", ".join(f"{name}({_keywords(arguments)})" for name, arguments in calls)
        return f"[{inner}]" if self.opening == "[" else f"{self.opening}[{inner}]{self.closing}"

    def read_calls(self, reader: Reader, answer: AnswerWriter, texts: TextArguments) -> Steps[None]:
        if self.opening != "[":
            yield from reader.blanks()
            yield from reader.expect("[")
        while True:
            yield from reader.blanks()
            name = yield from reader.name("(", limit=128)
            arguments = _as_json((yield from _to_bracket(reader)))
            answer.begin(name.strip())
            answer.arguments(arguments)
            yield from reader.blanks()
            if not (yield from reader.skip(",")):
                break
        yield from reader.skip("]")
        yield from close_calls(reader, self.closing)

    def calls(self, rules: GrammarRules, *, may_repeat: bool) -> str:
        call = rules.choice("call", lambda index, tool: _call(rules, index, tool))
        again = more(f"/,\\s?/ {call}") if may_repeat else ""
        closing = rules.tag(self.closing) if self.closing else ""
        first = '"["' if self.opening != "[" else ""
        return f'{first} {call} {again} "]" {closing}'


def _keywords(arguments: Any) -> str:
    items = arguments.items() if isinstance(arguments, dict) else ()
    return ", ".join(f"{key(name, _MARKS)}={_written(value)}" for name, value in items)


def _written(value: Any) -> str:
    """A literal with JSON's quotes, which models write, and Python's words."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_written(key)}: {_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_written, value)) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _call(rules: GrammarRules, index: int, tool: Tool) -> str:
    """One call; its arguments in the order of the schema, those that are not required left out or not."""
    properties: Mapping[str, Any] = tool.parameters.get("properties") or {}
    required = tool.parameters.get("required") or ()
    items = []
    for place, name in enumerate(properties):
        value = rules.add(f"value_{index}_{place}", _value(property_schema(tool.parameters, name)))
        items.append((f"{literal(key(name, _MARKS) + '=')} {value}", name in required))
    return f'{literal(tool.name + "(")} {in_order(rules, f"list_{index}", items)} ")"'


def _value(schema: Any) -> str:
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind == "boolean" and "enum" not in schema and "const" not in schema:
        return '"True" | "False"'
    return '"None"' if kind == "null" else json_items(schema)


def _to_bracket(reader: Reader) -> Steps[list[str]]:
    """Parts between the commas, up to the bracket that ends the call (taken). Raises MalformedError."""
    texts: list[list[str]] = [[]]
    quote, depth, n = "", 1, 0
    while True:
        character = yield from reader.character()
        if quote:
            if character == "\\":
                character += yield from reader.character()
            elif character == quote:
                quote = ""
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return ["".join(text) for text in texts]
        if character == "," and depth == 1 and not quote:
            texts.append([])
        else:
            texts[-1].append(character)
        n += 1
        if depth > MAX_DEPTH or n > _MAX_CHARS:
            raise MalformedError


def _as_json(texts: list[str]) -> str:
    """Keyword arguments as a JSON object. Raises MalformedError for anything else."""
    if not texts[-1].strip():
        # There are none, or a comma stands behind the last.
        texts = texts[:-1]
    items: dict[str, str] = {}
    for text in texts:
        name, value = _name_and_value(text.strip())
        if not value or name in items:
            raise MalformedError
        items[name] = _value_as_json(value)
    return "{" + ", ".join(f"{json.dumps(name, ensure_ascii=False)}: {value}" for name, value in items.items()) + "}"


def _name_and_value(text: str) -> tuple[str, str]:
    """Name and value of an argument; names need not be valid Python (`from`, `max-price`)."""
    if text.startswith('"'):
        try:
            name, end = json.JSONDecoder().raw_decode(text)
        except ValueError:
            raise MalformedError from None
        between, _, value = text[end:].partition("=")
        is_named = not between.strip()
    else:
        name, _, value = text.partition("=")
        name = name.strip()
        is_named = name != ""
    if not is_named:
        raise MalformedError
    return name, value.strip()


def _value_as_json(text: str) -> str:
    """A value as JSON, which it is already or else Python's. Raises MalformedError for anything else."""
    try:
        json.loads(text, parse_int=str, parse_float=str, parse_constant=_refuse)
    except (ValueError, RecursionError):
        pass
    else:
        return text
    try:
        return json.dumps(_literal(ast.parse(f"({text})", mode="eval").body), ensure_ascii=False)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise MalformedError from None


def _refuse(word: str) -> None:
    raise ValueError(word)


def _literal(node: ast.expr) -> Any:
    """The value of a literal, in which JSON's words for truth and nothing are known too."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and inner.value == math.inf:
            # JSON bounds no number, but Python does.
            inner.value = sys.float_info.max
        for field, value in ast.iter_fields(inner):
            parts = value if isinstance(value, list) else [value]
            known = [ast.Constant(_NAMES[p.id]) if isinstance(p, ast.Name) and p.id in _NAMES else p for p in parts]
            setattr(inner, field, known if isinstance(value, list) else known[0])
    if isinstance(node, ast.Name):
        node = ast.Constant(_NAMES.get(node.id, ...))
    value = ast.literal_eval(node)
    return json.loads(json.dumps(value))
