"""Incremental reader: parsers written as generators over text that arrives in pieces.

`yield from reader.until(...)` suspends where more text is needed; the driver of the outermost generator adds text
before it resumes it. Knows nothing of answers and formats.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator
from typing import TypeVar

from ggufd.engine.sampling.detokenizer import StopMatcher

T = TypeVar("T")

Steps = Generator[None, None, T]
"""Parser step: suspends whenever more text is needed, and returns a T."""

Emit = Callable[[str], None]

MAX_DEPTH = 200
"""How deep JSON may nest."""

_STRUCTURE = re.compile(r'["{}\[\]]')
_STRING_END = re.compile(r'(?:[^"\\]|\\.)*"', re.DOTALL)
_SCALAR_END = re.compile(r"[\s,\]}]")
_STRING_PART = re.compile(r'(?:[^"\\]|\\u[0-9a-fA-F]{4}|\\[^u])+', re.DOTALL)
_MAX_ESCAPE = 6


class MalformedError(Exception):
    """Text that does not follow the format."""


class CutError(Exception):
    """Text that was cut inside a tag or the head of a call."""


class Reader:
    """Buffer of unread text. `recorded` is what was read since `record`.

    `is_over`: no more text will come; `is_cut`: a limit or a stop string ended it.
    """

    def __init__(self) -> None:
        self._text = ""
        self._recorded: list[str] = []
        self.is_over = False
        self.is_cut = False

    def add(self, text: str) -> None:
        self._text += text

    def end(self, *, is_cut: bool = False) -> None:
        """Mark the end of the text."""
        self.is_over = True
        self.is_cut = is_cut

    def record(self, text: str = "") -> None:
        """Start recording, with `text` as already read."""
        self._recorded = [text]

    @property
    def recorded(self) -> str:
        return "".join(self._recorded)

    def unread(self) -> str:
        """Take all the rest."""
        return self._take(len(self._text))

    def _take(self, n: int) -> str:
        text, self._text = self._text[:n], self._text[n:]
        self._recorded.append(text)
        return text

    def _wait(self) -> Steps[None]:
        """Suspend until there is more text. Raises MalformedError at its end, CutError where it was cut."""
        if self.is_over:
            self.refuse_cut()
            raise MalformedError
        yield

    def refuse_cut(self) -> None:
        """Raise CutError when the text was cut."""
        if self.is_cut:
            raise CutError

    def until(self, stops: tuple[str, ...], emit: Emit, *, keeps_cut: bool = False) -> Steps[str]:
        """Pass text on up to the first of `stops`, which is taken and returned; "" when none comes any more.

        The beginning of one at a cut is left out, unless `keeps_cut`.
        """
        matcher = StopMatcher(stops)
        while (found := matcher.find(self._text)) is None:
            is_whole = self.is_over and (keeps_cut or not self.is_cut)
            n_held = 0 if is_whole else matcher.n_held(self._text)
            self._pass(len(self._text) - n_held, emit)
            if self.is_over:
                self.unread()
                return ""
            yield
        position, stop = found
        self._pass(position, emit)
        self._take(len(stop))
        return stop

    def _pass(self, n: int, emit: Emit) -> None:
        if n:
            emit(self._take(n))

    def rest(self, emit: Emit) -> Steps[None]:
        """Pass on everything to the end."""
        while True:
            self._pass(len(self._text), emit)
            if self.is_over:
                return
            yield

    def begins(self, options: tuple[str, ...]) -> Steps[str]:
        """The one of `options` that the text begins with, "" for none; waits until that is decided. Takes nothing.

        Raises CutError where the text was cut while it was open.
        """
        while True:
            found = next((option for option in options if self._text.startswith(option)), "")
            if found or not any(option.startswith(self._text) for option in options):
                return found
            if self.is_over:
                self.refuse_cut()
                return ""
            yield

    def blanks(self, *, limit: int | None = None) -> Steps[None]:
        """Skip white space, at most `limit` characters."""
        n_left = limit
        while n_left != 0:
            text = self._text if n_left is None else self._text[:n_left]
            n = len(text) - len(text.lstrip())
            self._take(n)
            n_left = None if n_left is None else n_left - n
            if self._text or self.is_over:
                return
            yield

    def skip(self, text: str) -> Steps[bool]:
        """Take `text` if it comes next; True if it did."""
        is_there = bool(text) and bool((yield from self.begins((text,))))
        if is_there:
            self._take(len(text))
        return is_there

    def expect(self, text: str) -> Steps[None]:
        """Take `text`, which must come next. Raises MalformedError."""
        if text and not (yield from self.skip(text)):
            raise MalformedError

    def peek(self) -> Steps[str]:
        """The next character. Raises MalformedError at the end."""
        while not self._text:
            yield from self._wait()
        return self._text[0]

    def character(self) -> Steps[str]:
        """Take the next character. Raises MalformedError at the end."""
        yield from self.peek()
        return self._take(1)

    def name(self, stop: str, *, limit: int = 256) -> Steps[str]:
        """The short text up to `stop`, which is taken. Raises MalformedError when it does not come soon."""
        parts: list[str] = []
        while stop not in self._text:
            if len(self._text) > limit + len(stop):
                raise MalformedError
            yield from self._wait()
        yield from self.until((stop,), parts.append)
        name = "".join(parts)
        if len(name) > limit:
            raise MalformedError
        return name

    # --- JSON -------------------------------------------------------------------------------------------------------

    def json_string(self) -> Steps[str]:
        """A JSON string's text. Raises MalformedError for anything else."""
        yield from self.expect('"')
        while (match := _STRING_END.match(self._text)) is None:
            yield from self._wait()
        try:
            text = json.loads('"' + self._take(match.end()), strict=False)
        except ValueError:
            raise MalformedError from None
        return str(text)

    def string_part(self) -> Steps[str]:
        """More of a JSON string's text, from behind its quote: whole escapes, "" at its end. Raises MalformedError."""
        while (match := _STRING_PART.match(self._text)) is None:
            if self._text.startswith('"'):
                self._take(1)
                return ""
            if len(self._text) >= _MAX_ESCAPE:
                raise MalformedError
            yield from self._wait()
        try:
            return str(json.loads(f'"{self._take(match.end())}"', strict=False))
        except ValueError:
            raise MalformedError from None

    def json_value(self, emit: Emit) -> Steps[None]:
        """Pass a JSON value on as it is written. Raises MalformedError where brackets do not match or the text ends."""
        first = yield from self.peek()
        if first not in '"{[':
            yield from self._json_scalar(emit)
            return
        open_brackets: list[str] = []
        while True:
            yield from self._json_part(open_brackets, emit)
            if not open_brackets:
                return

    def _json_scalar(self, emit: Emit) -> Steps[None]:
        while (match := _SCALAR_END.search(self._text)) is None:
            self._pass(len(self._text), emit)
            yield from self._wait()
        self._pass(match.start(), emit)

    def _json_part(self, open_brackets: list[str], emit: Emit) -> Steps[None]:
        """Up to the next bracket or over the next string."""
        while (match := _STRUCTURE.search(self._text)) is None:
            self._pass(len(self._text), emit)
            yield from self._wait()
        self._pass(match.end(), emit)
        match match.group():
            case '"':
                yield from self._string_rest(emit)
            case "{" | "[" as bracket:
                open_brackets.append("}" if bracket == "{" else "]")
                if len(open_brackets) > MAX_DEPTH:
                    raise MalformedError
            case bracket:
                if not open_brackets or open_brackets.pop() != bracket:
                    raise MalformedError

    def _string_rest(self, emit: Emit) -> Steps[None]:
        """The rest of a string as it comes; never a half of an escape, so that each piece can be looked at alone."""
        while (match := _STRING_END.match(self._text)) is None:
            n = len(self._text) - _n_open_escape(self._text)
            self._pass(n, emit)
            yield from self._wait()
        self._pass(match.end(), emit)


def _n_open_escape(text: str) -> int:
    """1 when the text ends in a backslash that escapes what comes next."""
    return (len(text) - len(text.rstrip("\\"))) % 2
