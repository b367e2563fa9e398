"""Formats in which a call is a JSON object with a name and arguments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ggufd.chat.deltas.reader import MalformedError, Reader, Steps
from ggufd.chat.deltas.writer import AnswerWriter
from ggufd.chat.tools.base import TextArguments, ToolFormat, close_calls, read_arguments, write_arguments
from ggufd.chat.tools.rules import GrammarRules, escaped, more, pattern


@dataclass(frozen=True, kw_only=True)
class JsonCalls(ToolFormat):
    """Calls as JSON objects with a name and arguments, one between tags, or a list of them (`is_list`).

    `fence` stands before it and `closing` behind.
    """

    fence: str = ""
    closing: str = ""
    is_list: bool = False
    name_key: str = "name"
    arguments_key: str = "arguments"
    id_key: str = ""
    id_pattern: str = "[a-zA-Z0-9]{9}"
    is_id_first: bool = False

    @property
    def tags(self) -> tuple[str, ...]:
        return self.opening, self.closing

    def write(self, calls: Sequence[tuple[str, Any]]) -> str | None:
        objects = [{self.name_key: name, self.arguments_key: arguments} for name, arguments in calls]
        if self.is_id_first:
            objects = [{self.id_key: str(index), **one} for index, one in enumerate(objects)]
        texts = [json.dumps(value, ensure_ascii=False) for value in objects]
        if self.is_list:
            fence = f" {self.fence}\n" if self.fence else ""
            return f"{self.opening}{fence}[{', '.join(texts)}]{self.closing}"
        return "\n".join(f"{self.opening}\n{text}\n{self.closing}" for text in texts)

    def read_calls(self, reader: Reader, answer: AnswerWriter, texts: TextArguments) -> Steps[None]:
        yield from reader.blanks()
        yield from reader.skip(self.fence)
        yield from reader.blanks()
        if not (yield from reader.skip("[")):
            yield from self._read_call(reader, answer)
        else:
            yield from self._read_list(reader, answer)
        yield from close_calls(reader, self.closing)

    def _read_list(self, reader: Reader, answer: AnswerWriter) -> Steps[None]:
        while True:
            yield from reader.blanks()
            if (yield from reader.skip("]")):
                return
            yield from self._read_call(reader, answer)
            yield from reader.blanks()
            yield from reader.skip(",")

    def _read_call(self, reader: Reader, answer: AnswerWriter) -> Steps[None]:
        yield from reader.expect("{")
        yield from read_json_call(reader, answer, (self.name_key, "name"), (self.arguments_key, "arguments"))

    def calls(self, rules: GrammarRules, *, may_repeat: bool) -> str:
        call = rules.choice("call", lambda index, tool: self._call(rules, index, tool.name))
        closing = f"/\\s?/ {rules.tag(self.closing)}" if self.closing else ""
        if self.is_list:
            again = more(f"/,\\s{{0,8}}/ {call}") if may_repeat else ""
            fence = f"/\\s?/ {rules.tag(self.fence)}" if self.fence else ""
            return f"{fence} /\\s{{0,8}}\\[\\s{{0,8}}/ {call} {again} /\\s{{0,8}}\\]/ {closing}"
        one = f"/\\s?/ {call} {closing}"
        return one + (more(f"/\\s?/ {rules.tag(self.opening)} {one}") if may_repeat and closing else "")

    def _call(self, rules: GrammarRules, index: int, name: str) -> str:
        identity = f'"{self.id_key}":\\s?"{self.id_pattern}"' if self.id_key else ""
        first = f"{identity},\\s?" if identity and self.is_id_first else ""
        last = f"(,\\s?{identity})?" if identity and not self.is_id_first else ""
        head = f'\\{{\\s?{first}"{self.name_key}":\\s?"{escaped(name)}",\\s?"{self.arguments_key}":\\s?'
        return f"{pattern(head)} {rules.arguments(index)} {pattern(last + _END)}"


@dataclass(frozen=True, kw_only=True)
class BareJsonCalls(JsonCalls):
    """A call that is the whole answer: a JSON object without tags."""

    opening: str = "{"
    is_at_start: bool = True

    def write(self, calls: Sequence[tuple[str, Any]]) -> str | None:
        name, arguments = calls[0]
        return json.dumps({self.name_key: name, self.arguments_key: arguments}, ensure_ascii=False)

    def read_calls(self, reader: Reader, answer: AnswerWriter, texts: TextArguments) -> Steps[None]:
        yield from read_json_call(reader, answer, (self.name_key,), (self.arguments_key, "arguments"))

    def calls(self, rules: GrammarRules, *, may_repeat: bool) -> str:
        return rules.choice("call", lambda index, tool: self._call(rules, index, tool.name).replace("/\\{", "/", 1))


_END = r"\s?\}"


def read_json_call(
    reader: Reader, answer: AnswerWriter, names: tuple[str, ...], arguments: tuple[str, ...]
) -> Steps[None]:
    """A JSON object that is a call, from behind its bracket. Arguments are passed on as soon as the name is known."""
    held: list[str] | None = None
    is_begun = has_arguments = False
    yield from reader.blanks()
    while not (yield from reader.skip("}")):
        key = yield from reader.json_string()
        yield from _colon(reader)
        if key in names and not is_begun:
            answer.begin((yield from reader.json_string()))
            is_begun = True
            if held is not None:
                write_arguments(answer, "".join(held))
                has_arguments = True
        elif key in arguments and is_begun and not has_arguments:
            has_arguments = True
            yield from read_arguments(reader, answer)
        elif key in arguments and held is None:
            held = []
            yield from reader.json_value(held.append)
        else:
            yield from reader.json_value(_ignore)
        yield from reader.blanks()
        yield from reader.skip(",")
        yield from reader.blanks()
    if not is_begun:
        raise MalformedError
    if not has_arguments:
        answer.arguments("{}")


def _colon(reader: Reader) -> Steps[None]:
    yield from reader.blanks()
    yield from reader.expect(":")
    yield from reader.blanks()


def _ignore(text: str) -> None:
    """Skip text that clients do not get."""
