"""Formats in which a call is a name between tags, then its arguments as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ggufd.chat.deltas.reader import MalformedError, Reader, Steps
from ggufd.chat.deltas.writer import AnswerWriter
from ggufd.chat.tools.base import TextArguments, ToolFormat, read_arguments
from ggufd.chat.tools.rules import GrammarRules, more, pattern


@dataclass(frozen=True, kw_only=True)
class NamedCalls(ToolFormat):
    """`opening`, then for each call `before` NAME `between` ARGUMENTS `after`, and `closing` at last.

    Where `before` is empty each call has an opening of its own. `number` is a regular expression of what may stand
    behind the name, and must with `is_numbered`.
    """

    before: str = ""
    between: str
    after: str = ""
    closing: str = ""
    number: str = ""
    is_numbered: bool = False

    @property
    def tags(self) -> tuple[str, ...]:
        return self.opening, self.before, self.between, self.after, self.closing

    def write(self, calls: Sequence[tuple[str, Any]]) -> str | None:
        texts = []
        for index, (name, arguments) in enumerate(calls):
            number = f":{index}" if self.is_numbered else ""
            text = json.dumps(arguments, ensure_ascii=False)
            texts.append(f"{self.before or self.opening}{name}{number}{self.between}{text}{self.after}")
        return f"{self.opening if self.before else ''}{''.join(texts)}{self.closing}"

    def read_calls(self, reader: Reader, answer: AnswerWriter, texts: TextArguments) -> Steps[None]:
        if not self.before:
            yield from self._read_call(reader, answer)
            return
        yield from reader.blanks()
        while (yield from reader.skip(self.before)):
            yield from self._read_call(reader, answer)
            yield from reader.blanks()
        yield from reader.skip(self.closing)

    def _read_call(self, reader: Reader, answer: AnswerWriter) -> Steps[None]:
        text = yield from reader.name(self.between.rstrip())
        name = re.sub(self.number + r"\Z", "", text).strip() if self.number else text.strip()
        if not name:
            raise MalformedError
        answer.begin(name)
        yield from reader.blanks()
        yield from read_arguments(reader, answer)
        yield from reader.blanks()
        yield from reader.skip(self.after.lstrip())

    def calls(self, rules: GrammarRules, *, may_repeat: bool) -> str:
        call = rules.choice("call", lambda index, tool: self._call(rules, index, tool.name))
        before = rules.tag(self.before) if self.before else ""
        opening = before or rules.tag(self.opening)
        again = more(f"/\\s?/ {opening} {call}") if may_repeat else ""
        closing = rules.tag(self.closing) if self.closing else ""
        return f"{before} {call} {again} {closing}"

    def _call(self, rules: GrammarRules, index: int, name: str) -> str:
        number = pattern(self.number) if self.is_numbered else ""
        after = rules.tag(self.after) if self.after else ""
        return f"{rules.tag(name)} {number} {rules.tag(self.between)} {rules.arguments(index)} {after}"
