"""Lark rules of one request's tool calls, as llguidance reads them. Knows no format and no vocabulary."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SPECIAL_INSIDE = re.compile(r'(?P<before>"(?:[^"\\]|\\.)*") (?P<special><\[.*)')
"""A tag that begins with a text and has a special token further on, as Lark items."""

TEXT = "TEXT"
"""Any text, also none; a tag of the format ends it."""

_WRITTEN = {"whitespace_flexible": False, "item_separator": r",\s?", "key_separator": r":\s?"}
"""JSON as models write it. Without this a small model may indent for ever."""


@dataclass(frozen=True, slots=True)
class Length:
    """Length limits of a string, in characters."""

    least: int = 0
    most: int | None = None

    @property
    def regex(self) -> str:
        if self == ANY_LENGTH:
            return "(?s:.*)"
        return f"(?s:.{{{self.least},{'' if self.most is None else self.most}}})"

    @property
    def some(self) -> str:
        """A terminal of a text that is not empty."""
        return TEXT if self == ANY_LENGTH else f"/{Length(max(self.least, 1), self.most).regex}/"


ANY_LENGTH = Length()


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that may be called; `parameters` is the JSON schema of its arguments, an object."""

    name: str
    parameters: Mapping[str, Any]


MAX_CALLS = 32
"""In one answer: a small model under constraint may know no end."""


def key(name: str, delimiters: str) -> str:
    """Argument name as it is, or as a JSON string where a blank or one of the `delimiters` in it would be misread."""
    is_bare = name != "" and name == name.strip() and not set(name) & set(delimiters)
    return name if is_bare else json.dumps(name, ensure_ascii=False)


def more(items: str) -> str:
    """Repetition of a call, if more than one may come."""
    return f"({items}){{0,{MAX_CALLS - 1}}}"


class GrammarRules:
    """Rules by name. `tag` writes a text of the format as Lark items, special tokens by their ids."""

    def __init__(self, tools: Sequence[Tool], tag: Callable[[str], str]) -> None:
        self.tools = tuple(tools)
        self.tag = tag
        self._rules: dict[str, str] = {}

    def add(self, name: str, items: str) -> str:
        """Add a rule, or a terminal where the name is in capitals; returns its name."""
        self._rules[name] = items
        return name

    def arguments(self, index: int) -> str:
        """The rule of one tool's arguments as a JSON object."""
        return self.add(f"arguments_{index}", json_items(self.tools[index].parameters))

    def choice(self, name: str, items: Callable[[int, Tool], str]) -> str:
        """A rule that leaves a choice between all tools."""
        options = [self.add(f"{name}_{index}", items(index, tool)) for index, tool in enumerate(self.tools)]
        return self.add(name, " | ".join(options))

    def up_to(self, name: str, text: str, length: Length = ANY_LENGTH) -> str:
        """Any text up to the first `text`, and that. A special token ends it by itself; else the rule `name` does."""
        ending = self.tag(text)
        if length.most == 0:
            return ending
        if ending.startswith("<["):
            return f"{length.some}{'' if length.least else '?'} {ending}"
        if inner := _SPECIAL_INSIDE.match(ending):
            begun = self.add(f"{name.upper()}_BEGUN", f"/{length.regex}{escaped(json.loads(inner['before']))}/")
            return f"{begun} {inner['special']}"
        self.add(f"{name}[lazy]", f"/{length.regex}/ {ending}")
        return name

    def text(self, start: str) -> str:
        """The whole grammar."""
        rules = {"start": start, **self._rules, TEXT: "/(?s:.*)/"}
        return "\n".join(f"{name}: {items}" for name, items in rules.items())


def in_order(rules: GrammarRules, name: str, items: list[tuple[str, bool]]) -> str:
    """The items with commas between; `first` stands where none came before, `rest` where one did."""
    first, rest = "", ""
    for place, (item, is_required) in reversed(list(enumerate(items))):
        begun = f"{item} {rest}"
        options = begun if is_required else f"{begun} | {first}" if first else f"({begun})?"
        following = f"/,\\s?/ {item}" if is_required else f"(/,\\s?/ {item})?"
        rest = rules.add(f"{name}_rest_{place}", f"{following} {rest}")
        first = rules.add(f"{name}_{place}", options)
    return first


def json_items(schema: Any) -> str:
    """JSON that fits a schema."""
    if isinstance(schema, Mapping):
        schema = {**schema, "x-guidance": _WRITTEN}
    return "%json " + json.dumps(schema, ensure_ascii=False)


def property_schema(parameters: Mapping[str, Any], name: str) -> Any:
    """The schema of one argument, with the definitions that it may refer to."""
    schema = parameters["properties"][name]
    definitions = {key: parameters[key] for key in ("$defs", "definitions") if key in parameters}
    return {**schema, **definitions} if isinstance(schema, Mapping) else schema


NOTES = {"description", "title", "default", "examples"}
"""Keywords of a schema that constrain nothing."""

_LENGTHS = {"minLength", "maxLength"}


def text_arguments(parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """String arguments whose schemas can be enforced on plain text."""
    properties = parameters.get("properties")
    if not isinstance(properties, Mapping):
        return ()
    return tuple(name for name, schema in properties.items() if _is_text(schema))


def _is_text(schema: Any) -> bool:
    if not isinstance(schema, Mapping):
        return False
    keywords = set(schema) - NOTES
    options = text_options(schema)
    if options is not None:
        return keywords <= {"type", "enum", "const"} and schema.get("type", "string") == "string"
    return schema.get("type") == "string" and keywords <= {"type", *_LENGTHS}


def text_options(schema: Mapping[str, Any]) -> list[str] | None:
    """Strings of a schema's enum, None without one or with other values in it."""
    options = schema.get("enum", [schema["const"]] if "const" in schema else None)
    is_listed = isinstance(options, list) and options and all(isinstance(option, str) for option in options)
    if not is_listed or not isinstance(schema.get("const", ""), str) or schema.get("const", options[0]) not in options:
        return None
    return [schema["const"]] if "const" in schema else list(options)


def text_length(schema: Mapping[str, Any]) -> Length:
    """Length limits of a string schema."""
    return Length(schema.get("minLength", 0), schema.get("maxLength"))


def pattern(regex: str) -> str:
    """A terminal of a regular expression; a slash is the only character that needs care in Lark."""
    return "/" + re.sub(r"(?<!\\)/", r"\/", regex) + "/"


def literal(text: str) -> str:
    """A terminal of a fixed text."""
    return json.dumps(text, ensure_ascii=False)


def escaped(text: str) -> str:
    """A fixed text inside a regular expression."""
    return re.sub(r"([\\.^$|?*+()\[\]{}/&~#-])", r"\\\1", text)
