"""Formats with each argument between its own tags: strings as plain text, other values as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ggufd.chat.deltas.reader import MalformedError, Reader, Steps
from ggufd.chat.deltas.writer import AnswerWriter
from ggufd.chat.tools.base import TextArguments, ToolFormat, as_json
from ggufd.chat.tools.rules import (
    GrammarRules,
    Tool,
    json_items,
    literal,
    more,
    property_schema,
    text_arguments,
    text_length,
    text_options,
)


@dataclass(frozen=True, kw_only=True)
class TaggedCalls(ToolFormat):
    """A call is `before` NAME `between`, its arguments, `after`; in `opening` and `closing`, with `is_block` several.

    An argument is `key_before` KEY `key_after` `value_before` VALUE `value_after`. Formats that say whether the value
    is a text do it with `if_text` or `if_other` behind `key_after`. `edge` stands between tags, `value_edge` round
    values: a line end, or nothing.
    """

    closing: str
    before: str = ""
    between: str = ""
    after: str = ""
    key_before: str
    key_after: str
    if_text: str = ""
    if_other: str = ""
    value_before: str = ""
    value_after: str
    edge: str = "\n"
    value_edge: str = ""
    is_block: bool = False

    @property
    def tags(self) -> tuple[str, ...]:
        tags = self.before, self.after, self.key_before, self.key_after, self.value_before, self.value_after
        return self.opening, self.closing, *tags

    def write(self, calls: Sequence[tuple[str, Any]]) -> str | None:
        written = [self._written(name, arguments) for name, arguments in calls]
        edge = self.edge if self.before else ""
        if self.is_block:
            return f"{self.opening}{edge}{''.join(written)}{self.closing}"
        return "\n".join(f"{self.opening}{edge}{call}{self.closing}" for call in written)

    def _written(self, name: str, arguments: Any) -> str:
        parts = [self.before, name, self.between, self.edge]
        for key, value in arguments.items() if isinstance(arguments, dict) else ():
            parts += [self.key_before, key, *self._written_value(value), self.value_after, self.edge]
        return "".join([*parts, self.after, self.edge if self.after else ""])

    def _written_value(self, value: Any) -> list[str]:
        is_text = isinstance(value, str)
        text = value if is_text else json.dumps(value, ensure_ascii=False)
        between = self.edge if self.value_before else ""
        return [self._key_after(is_text=is_text), between, self.value_before, self.value_edge, text, self.value_edge]

    def _key_after(self, *, is_text: bool) -> str:
        return self.key_after + (self.if_text if is_text else self.if_other)

    def read_calls(self, reader: Reader, answer: AnswerWriter, texts: TextArguments) -> Steps[None]:
        yield from reader.blanks()
        yield from reader.expect(self.before)
        yield from self._read_call(reader, answer, texts)
        while self.is_block and (yield from reader.skip(self.before)):
            yield from self._read_call(reader, answer, texts)
        yield from reader.skip(self.closing)

    def _read_call(self, reader: Reader, answer: AnswerWriter, texts: TextArguments) -> Steps[None]:
        """From behind `before`, with the blanks that follow."""
        name = yield from self._read_name(reader)
        answer.begin(name)
        separator = "{"
        yield from reader.blanks()
        while (yield from reader.skip(self.key_before)):
            key, is_text = yield from self._read_key(reader, texts.get(name, ()))
            answer.arguments(f"{separator}{json.dumps(key, ensure_ascii=False)}: ")
            separator = ", "
            if self.value_before:
                yield from reader.blanks()
                yield from reader.expect(self.value_before)
            yield from self._read_value(reader, answer, is_text=is_text)
            yield from reader.blanks()
        yield from reader.skip(self.after)
        answer.arguments("{}" if separator == "{" else "}")
        yield from reader.blanks()

    def _read_key(self, reader: Reader, texts: Sequence[str]) -> Steps[tuple[str, bool]]:
        """Key, and whether its value is a string: by the tag after it, or by the tool's schema."""
        key = (yield from reader.name(self.key_after)).strip()
        if not self.if_text:
            return key, key in texts
        is_text = yield from reader.skip(self.if_text)
        if not is_text:
            yield from reader.expect(self.if_other)
        return key, is_text

    def _read_name(self, reader: Reader) -> Steps[str]:
        """Name up to `between`, or without that up to the next line end or tag."""
        parts: list[str] = []
        if self.between:
            parts.append((yield from reader.name(self.between)))
        else:
            while (character := (yield from reader.peek())) not in "\n<":
                parts.append((yield from reader.character()))
                if len(parts) > 256:
                    raise MalformedError
            assert character
        name = "".join(parts).strip()
        if not name:
            raise MalformedError
        return name

    def _read_value(self, reader: Reader, answer: AnswerWriter, *, is_text: bool) -> Steps[None]:
        if is_text:
            # Where the format says that it is a text, it is one to the last line end.
            value = _TagText(answer, strips=not self.if_text)
            answer.arguments('"')
            if not (yield from reader.until((self.value_after,), value.add)):
                reader.refuse_cut()
            answer.arguments('"')
            return
        parts: list[str] = []
        if not (yield from reader.until((self.value_after,), parts.append)):
            reader.refuse_cut()
        answer.arguments(as_json("".join(parts).strip()))

    # --- the grammar ------------------------------------------------------------------------------------------------

    def calls(self, rules: GrammarRules, *, may_repeat: bool) -> str:
        call = rules.choice("call", lambda index, tool: self._call(rules, index, tool))
        closing = rules.tag(self.closing)
        if self.is_block:
            return f"{call} {more(call) if may_repeat else ''} {closing}"
        again = more(f"/\\s?/ {rules.tag(self.opening)} {call} {closing}") if may_repeat else ""
        return f"{call} {closing} {again}"

    def _call(self, rules: GrammarRules, index: int, tool: Tool) -> str:
        edge = literal(self.edge) if self.edge else ""
        before = f"/\\s?/ {rules.tag(self.before)}" if self.before else ""
        between = literal(self.between) if self.between else ""
        after = f"{rules.tag(self.after)} {edge}" if self.after else ""
        required = tool.parameters.get("required") or ()
        items = []
        for place, name in enumerate(tool.parameters.get("properties") or {}):
            item = rules.add(f"argument_{index}_{place}", self._argument(rules, f"value_{index}_{place}", tool, name))
            items.append(item if name in required else f"{item}?")
        return f"{before} {literal(tool.name)} {between} {edge} {' '.join(items)} {after}"

    def _argument(self, rules: GrammarRules, rule: str, tool: Tool, name: str) -> str:
        key_after = self._key_after(is_text=name in text_arguments(tool.parameters))
        key = f"{rules.tag(self.key_before)} {literal(name)} {rules.tag(key_after)}"
        edge = literal(self.edge) if self.edge else ""
        inner = literal(self.value_edge) if self.value_edge else ""
        before = f"{edge} {rules.tag(self.value_before)}" if self.value_before else ""
        value = self._value(rules, rule, tool, name)
        return f"{key} {before} {inner} {value} {edge}"

    def _value(self, rules: GrammarRules, rule: str, tool: Tool, name: str) -> str:
        """A value with the tag that ends it."""
        schema = property_schema(tool.parameters, name)
        ending = rules.tag(self.value_edge + self.value_after)
        if name not in text_arguments(tool.parameters):
            return f"{rules.add(rule, json_items(schema))} {ending}"
        if (options := text_options(schema)) is not None:
            return f"{rules.add(rule, ' | '.join(literal(option) for option in options))} {ending}"
        return rules.up_to(rule, self.value_edge + self.value_after, text_length(schema))


class _TagText:
    """Conversion of plain text to a JSON string; `strips` drops one line end before and after it."""

    def __init__(self, answer: AnswerWriter, *, strips: bool) -> None:
        self._answer = answer
        self._strips = self._is_first = strips
        self._held = ""

    def add(self, text: str) -> None:
        if self._is_first:
            text = text.removeprefix("\n")
            self._is_first = False
        text = self._held + text
        self._held = "\n" if self._strips and text.endswith("\n") else ""
        self._answer.arguments(json.dumps(text.removesuffix(self._held), ensure_ascii=False)[1:-1])
