"""What a format of tool calls is: one interface, with what most formats have in common."""

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
    """How one family of models writes calls.

    A template that holds all of `signs`, or any of `or_signs`, is of this family; `unless` are signs of another.
    `opening` begins a call, or several at once, anywhere in the text, or with `is_at_start` at the beginning of it
    only. With `is_whole` an answer without calls is in this format too, thoughts and all.
    """

    name: str
    signs: tuple[str, ...]
    or_signs: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    opening: str
    is_at_start: bool = False
    is_whole: bool = False

    def fits(self, template: str) -> bool:
        """Whether a template looks like one of this family."""
        is_one = all(sign in template for sign in self.signs) or any(sign in template for sign in self.or_signs)
        return is_one and not any(sign in template for sign in self.unless)

    @property
    def thoughts(self) -> Thinking | None:
        """The marks round thoughts, where they are a part of the format."""
        return None

    @property
    @abstractmethod
    def marks(self) -> tuple[str, ...]:
        """Texts that may be special tokens, which must then be written out to be read."""

    @abstractmethod
    def read_calls(self, reader: Reader, answer: AnswerWriter, texts: TextArguments) -> Steps[None]:
        """What follows the opening. Raises MalformedError when it is no call."""

    @abstractmethod
    def calls(self, rules: GrammarRules, *, may_repeat: bool) -> str:
        """Lark of what follows the opening, to the end of the last call."""

    def write(self, calls: Sequence[tuple[str, Any]]) -> str | None:
        """Calls as the model would write them; None for formats whose templates always do that themselves."""
        return None

    def read(self, reader: Reader, answer: AnswerWriter, texts: TextArguments) -> Steps[None]:
        """Content and calls, to the end of the text. What only looked like a call is content."""
        while (yield from self.find(reader, answer)):
            reader.record(self.opening)
            n_calls = answer.n_calls
            try:
                yield from self.read_calls(reader, answer, texts)
            except MalformedError:
                if answer.n_calls == n_calls:
                    answer.content(reader.recorded)

    def find(self, reader: Reader, answer: AnswerWriter) -> Steps[bool]:
        """On to the next opening, which is taken; False at the end of the text."""
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
        """Lark of all that follows the thoughts: calls, or content as `body` has it."""
        opening = rules.mark(self.opening)
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
"""For each tool, the arguments that are texts: formats that write no JSON must know which."""


def read_arguments(reader: Reader, answer: AnswerWriter) -> Steps[None]:
    """A JSON object, also one that is written as the text in a JSON string, as some models do."""
    if (yield from reader.peek()) == '"':
        write_arguments(answer, (yield from reader.json_string()))
    else:
        yield from reader.json_value(answer.arguments)


def write_arguments(answer: AnswerWriter, text: str) -> None:
    """Arguments that are there as a whole."""
    answer.arguments(text.strip() or "{}")


def as_json(text: str) -> str:
    """A value that is no text; what is no JSON was meant as one after all."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return text


def close_calls(reader: Reader, closing: str) -> Steps[None]:
    """Over the closing mark and blanks before it; a text that ends without it ends the call all the same."""
    if closing:
        yield from reader.blanks()
        yield from reader.skip(closing)
