"""Interface of a tool call format, with defaults that most formats share."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ggufd.chat.deltas.reader import MalformedError, Reader, Steps
from ggufd.chat.deltas.thinking import Thinking
from ggufd.chat.deltas.writer import AnswerWriter
from ggufd.chat.tools.rules import TEXT, GrammarRules, escaped


@dataclass(frozen=True, kw_only=True)
class ToolFormat(ABC):
    """Format in which one family of models writes tool calls.

    A template that holds all of `signs`, or any of `or_signs`, is of this family; `unless` are signs of another.
    `opening` begins a call, or several at once, anywhere in the text, or with `is_at_start` at the beginning of it
    only. With `is_whole` all answers are in this format, reasoning included, also those without calls.
    """

    name: str
    signs: tuple[str, ...]
    or_signs: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    opening: str
    is_at_start: bool = False
    is_whole: bool = False

    def fits(self, template: str) -> bool:
        """Whether a template is of this family, judging by its signs."""
        is_one = all(sign in template for sign in self.signs) or any(sign in template for sign in self.or_signs)
        return is_one and not any(sign in template for sign in self.unless)

    @property
    def reasoning_tags(self) -> Thinking | None:
        """Tags around reasoning, where they are part of the format."""
        return None

    @property
    @abstractmethod
    def tags(self) -> tuple[str, ...]:
        """Texts that may be special tokens, which detokenizing must then write out."""

    @abstractmethod
    def read_calls(self, reader: Reader, answer: AnswerWriter, texts: TextArguments) -> Steps[None]:
        """Parse what follows the opening. Raises MalformedError when it is no call."""

    @abstractmethod
    def calls(self, rules: GrammarRules, *, may_repeat: bool) -> str:
        """Lark of what follows the opening, to the end of the last call."""

    def write(self, calls: Sequence[tuple[str, Any]]) -> str | None:
        """Calls as the model would write them; None for formats whose templates always do that themselves."""
        return None

    def read(self, reader: Reader, answer: AnswerWriter, texts: TextArguments) -> Steps[None]:
        """Parse content and calls to the end of the text. A malformed call is content."""
        while (yield from self.find(reader, answer)):
            reader.record(self.opening)
            n_calls = answer.n_calls
            try:
                yield from self.read_calls(reader, answer, texts)
            except MalformedError:
                if answer.n_calls == n_calls:
                    answer.content(reader.recorded)

    def find(self, reader: Reader, answer: AnswerWriter) -> Steps[bool]:
        """Read on to the next opening and take it; False at the end of the text."""
        if not self.is_at_start:
            return bool((yield from reader.until((self.opening,), answer.content)))
        if answer.has_content:
            yield from reader.rest(answer.content)
            return False
        yield from reader.blanks()
        if (yield from reader.skip(self.opening)):
            return True
        yield from reader.rest(answer.content)
        return False

    def answer(self, rules: GrammarRules, *, body: str, may_repeat: bool, is_required: bool) -> str:
        """Lark of all that follows the reasoning: calls, or content as in `body`."""
        opening = rules.tag(self.opening)
        calls = rules.add("calls", self.calls(rules, may_repeat=may_repeat))
        if is_required:
            return f"{opening} {calls}"
        if body != TEXT:
            return f"{opening} {calls} | {body}"
        if self.is_at_start:
            rules.add("OTHER", f"/\\s*[^\\s{escaped(self.opening[0])}](?s:.*)/")
            return f"{opening} {calls} | OTHER?"
        return f"{rules.up_to('opened', self.opening)} {calls} | {TEXT}?"


TextArguments = Mapping[str, Sequence[str]]
"""String arguments of each tool, for formats that do not write JSON."""


def read_arguments(reader: Reader, answer: AnswerWriter) -> Steps[None]:
    """Parse a JSON object, or a JSON string that contains one, as some models write it."""
    if (yield from reader.peek()) == '"':
        write_arguments(answer, (yield from reader.json_string()))
    else:
        yield from reader.json_value(answer.arguments)


def write_arguments(answer: AnswerWriter, text: str) -> None:
    """Write complete arguments."""
    answer.arguments(text.strip() or "{}")


def as_json(text: str) -> str:
    """JSON of a value: the text itself if it is JSON, else a JSON string of it."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return text


def close_calls(reader: Reader, closing: str) -> Steps[None]:
    """Skip the closing tag and white space before it; it may be missing."""
    if closing:
        yield from reader.blanks()
        yield from reader.skip(closing)
