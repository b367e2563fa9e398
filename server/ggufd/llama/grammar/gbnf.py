"""Parser of llama.cpp's GBNF that writes it back in a plain subset, safe for translation.

The translator of llguidance takes over names, escapes and character classes nearly as they stand; where its target
reads them otherwise (a class is a regular expression there), the meaning would change or the translation break.
So literals and classes are decoded and written anew, rules are renamed, and limits are checked. Grammar of the
format: llama.cpp's grammars/README.md and src/llama-grammar.cpp.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ggufd.errors import InvalidRequest

MAX_DEPTH = 64
MAX_RULES = 2000
MAX_REPETITIONS = 2000

_TOKEN = re.compile(
    r"""
      (?P<comment>\#[^\r\n]*)
    | (?P<literal>"(?:[^"\\]|\\.)*")
    | (?P<set>\[(?:[^\]\\]|\\.)*\])
    | (?P<define>::=)
    | (?P<name>[A-Za-z0-9_-]+)
    | (?P<open>\()
    | (?P<close>\))
    | (?P<any>\.)
    | (?P<repeat>\{[\s0-9,]*\})
    | (?P<newline>\r\n|\r|\n)
    | (?P<space>[^\S\r\n]+)
    | (?P<operator>[|*+?])
    """,
    re.VERBOSE | re.DOTALL,
)
_CHAR = re.compile(
    r"\\x(?P<x>[0-9a-fA-F]{2})|\\u(?P<u>[0-9a-fA-F]{4})|\\U(?P<U>[0-9a-fA-F]{8})|\\(?P<plain>[trn\\\"\[\]])|(?P<char>[^\\])",
    re.DOTALL,
)
_PLAIN = {"t": "\t", "r": "\r", "n": "\n"}
_ANY = "[\\x00-\U0010ffff]"
_MAX_CHAR = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    line: int


def plain_gbnf(text: str) -> str:
    """Rewrite a grammar in the plain subset.

    Raises InvalidRequest that says what is wrong, or what this server cannot translate, with the line.
    """
    tokens = [token for token in _tokens(text) if token.kind != "comment"]
    names = _names(tokens)
    _check_depth(tokens)
    ambiguous = _repeated_repetitions(tokens)
    return "".join(_written(token, names) + '"" ' * (i in ambiguous) for i, token in enumerate(tokens))


def invalid(message: str, line: int) -> InvalidRequest:
    return InvalidRequest(f"The GBNF grammar is wrong in line {line}: {message}", param="grammar")


def _tokens(text: str) -> Iterator[_Token]:
    position, line = 0, 1
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _unreadable(text, position, line)
        yield _Token(match.lastgroup or "", match.group(), line)
        line += match.group().count("\n")
        position = match.end()


def _unreadable(text: str, position: int, line: int) -> InvalidRequest:
    char = text[position]
    if char in "<!":
        return invalid("references to tokens (<...>) cannot be translated; write the text instead", line)
    if char in '"[':
        return invalid("a literal or character class is not closed", line)
    if char == "{":
        return invalid("a repetition must be {m}, {m,} or {m,n}", line)
    return invalid(f"unexpected {char!r}", line)


def _names(tokens: list[_Token]) -> dict[str, str]:
    """New name of each rule, valid in the target syntax; `root` is kept."""
    meaningful = [t for t in tokens if t.kind not in ("space", "newline")]
    following = itertools.pairwise(meaningful)
    defined = [t.text for t, after in following if t.kind == "name" and after.kind == "define"]
    names = {name: "root" if name == "root" else f"rule{i}x" for i, name in enumerate(dict.fromkeys(defined))}
    if len(names) > MAX_RULES:
        raise InvalidRequest(f"The grammar has more than {MAX_RULES} rules.", param="grammar")
    if "root" not in names:
        raise InvalidRequest("The GBNF grammar has no rule named 'root'.", param="grammar")
    for token in meaningful:
        if token.kind == "name" and token.text not in names:
            raise invalid(f"the rule {token.text[:80]!r} is used but not defined", token.line)
    return names


def _check_depth(tokens: list[_Token]) -> None:
    depth = 0
    for token in tokens:
        depth += (token.kind == "open") - (token.kind == "close")
        if depth > MAX_DEPTH:
            raise invalid(f"parentheses are nested deeper than {MAX_DEPTH}", token.line)


def _repeated_repetitions(tokens: list[_Token]) -> set[int]:
    """Positions of groups that end in a repetition and are repeated, as `("a"+){2}`.

    The translator drops their parentheses when nothing else is inside, and then cannot be read; an empty literal in
    front keeps them.
    """
    found: set[int] = set()
    opened: list[int] = []
    before = after_close = None
    for i, token in enumerate(tokens):
        if token.kind in ("space", "newline"):
            continue
        is_repetition = token.kind == "repeat" or token.text in ("*", "+", "?")
        if is_repetition and after_close is not None:
            found.add(after_close)
        after_close = None
        if token.kind == "open":
            opened.append(i)
        elif token.kind == "close" and opened:
            group = opened.pop()
            after_close = group if before else None
        before = is_repetition
    return found


def _written(token: _Token, names: dict[str, str]) -> str:
    match token.kind:
        case "name":
            return names[token.text]
        case "literal":
            return '"' + "".join(map(_in_literal, _chars(token, token.text[1:-1]))) + '"'
        case "set":
            return _set(token)
        case "any":
            return _ANY
        case "repeat":
            return _repeat(token)
        case "newline":
            return "\n"
        case "space":
            return " "
    return token.text


def _chars(token: _Token, body: str) -> Iterator[tuple[str, bool]]:
    """Decoded characters of the body, and whether each was escaped."""
    position = 0
    while position < len(body):
        match = _CHAR.match(body, position)
        if match is None:
            raise invalid(f"unknown escape {body[position : position + 2]!r}", token.line)
        yield _char(token, match), match["char"] is None
        position = match.end()


def _char(token: _Token, match: re.Match[str]) -> str:
    digits = match["x"] or match["u"] or match["U"]
    if digits:
        code = int(digits, 16)
        if code > _MAX_CHAR or code in _SURROGATES:
            raise invalid(f"{match.group()} is no Unicode character", token.line)
        return chr(code)
    if match["plain"]:
        return _PLAIN.get(match["plain"], match["plain"])
    if ord(match["char"]) in _SURROGATES:
        raise invalid("a lone surrogate is no Unicode character", token.line)
    return match["char"]


def _in_literal(char: tuple[str, bool]) -> str:
    c = char[0]
    return f"\\x{ord(c):02x}" if ord(c) < 0x20 or c in '"\\\x7f' else c


def _set(token: _Token) -> str:
    body = token.text[1:-1]
    is_negated = body.startswith("^")
    ranges = "".join(_ranges(token, body[is_negated:]))
    if ranges:
        return f"[{'^' * is_negated}{ranges}]"
    if is_negated:
        return _ANY
    raise invalid("an empty character class [] matches nothing", token.line)


def _ranges(token: _Token, body: str) -> Iterator[str]:
    """`a-z` is a range wherever a character stands on both sides of an unescaped hyphen, as llama.cpp reads it."""
    chars = list(_chars(token, body))
    i = 0
    while i < len(chars):
        low = high = chars[i][0]
        if i + 2 < len(chars) and chars[i + 1] == ("-", False):
            high = chars[i + 2][0]
            i += 2
        if low > high:
            raise invalid(f"the range {low!r} to {high!r} runs backwards", token.line)
        yield _in_set(low) if low == high else f"{_in_set(low)}-{_in_set(high)}"
        i += 1


def _in_set(c: str) -> str:
    # Whatever might mean something to a regular expression inside a class is written as a number.
    return c if (c.isascii() and c.isalnum()) or ord(c) > 0x7F else f"\\x{ord(c):02x}"


def _repeat(token: _Token) -> str:
    bounds = re.fullmatch(r"\{\s*(\d+)\s*(?:(,)\s*(\d*)\s*)?\}", token.text)
    if bounds is None:
        raise invalid("a repetition must be {m}, {m,} or {m,n}", token.line)
    # At most so many digits are looked at: int() of a longer number costs time, and is too large anyway.
    low, high = (int(number[:9]) if number else None for number in (bounds[1], bounds[3]))
    if max(low or 0, high or 0) > MAX_REPETITIONS:
        raise invalid(f"a repetition may be at most {MAX_REPETITIONS}", token.line)
    if high is not None and low is not None and high < low:
        raise invalid(f"the repetition {token.text} runs backwards", token.line)
    return f"{{{low},{'' if high is None else high}}}" if bounds[2] else f"{{{low}}}"
