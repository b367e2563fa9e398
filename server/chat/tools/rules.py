"""Lark rules of one request's tool calls, as llguidance reads them. Knows no format and no vocabulary."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TEXT = "TEXT"
"""Any text, also none; a mark of the format ends it."""

_WRITTEN = {"whitespace_flexible": False, "item_separator": r",\s?", "key_separator": r":\s?"}
"""JSON as models write it. Without this a small model may indent for ever."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that may be called; `parameters` is the JSON schema of its arguments, an object."""

    name: str
    parameters: Mapping[str, Any]


MAX_CALLS = 32
"""In one answer: a small model under constraint may know no end."""


def more(items: str) -> str:
    """The same again, as often as calls may come after a first."""
    return f"({items}){{0,{MAX_CALLS - 1}}}"


class Rules:
    """Rules by name. `mark` writes a text of the format as Lark items, special tokens as what they are."""

    def __init__(self, tools: Sequence[Tool], mark: Callable[[str], str]) -> None:
        self.tools = tuple(tools)
        self.mark = mark
        self._rules: dict[str, str] = {}

    def add(self, name: str, items: str) -> str:
        """A rule, or a terminal where the name is in capitals; its name."""
        self._rules[name] = items
        return name

    def arguments(self, index: int) -> str:
        """The rule of one tool's arguments as a JSON object."""
        return self.add(f"arguments_{index}", json_items(self.tools[index].parameters))

    def choice(self, name: str, items: Callable[[int, Tool], str]) -> str:
        """A rule that leaves a choice between all tools."""
        options = [self.add(f"{name}_{index}", items(index, tool)) for index, tool in enumerate(self.tools)]
        return self.add(name, " | ".join(options))

    def text(self, start: str) -> str:
        """The whole grammar."""
        rules = {"start": start, **self._rules, TEXT: "/(?s:.*)/"}
        return "\n".join(f"{name}: {items}" for name, items in rules.items())


def json_items(schema: Any) -> str:
    """JSON that fits a schema."""
    if isinstance(schema, Mapping):
        schema = {**schema, "x-guidance": _WRITTEN}
    return "%json " + json.dumps(schema, ensure_ascii=False)


def pattern(regex: str) -> str:
    """A terminal of a regular expression; a slash is the only character that needs care in Lark."""
    return "/" + re.sub(r"(?<!\\)/", r"\/", regex) + "/"


def literal(text: str) -> str:
    """A terminal of a fixed text."""
    return json.dumps(text, ensure_ascii=False)


def escaped(text: str) -> str:
    """A fixed text inside a regular expression."""
    return re.sub(r"([\\.^$|?*+()\[\]{}/&~#-])", r"\\\1", text)
