"""Incremental comparison of a JSON text with a value.

After each piece it is known whether the text can still become equal. White space, the order of keys, escapes and the
spelling of numbers (`1.0`, `1`) do not count. Knows nothing of calls.
"""

from __future__ import annotations

import bisect
import json
from typing import Any

from ggufd.chat.deltas.reader import MalformedError, Reader, Steps

_SPARE = 8
"""Characters by which a number may be spelled longer than ours and still be compared."""


class JsonComparison:
    """Comparison of a growing JSON text with `value`. `is_equal` once the text is complete and equal."""

    def __init__(self, value: Any) -> None:
        self._reader = Reader()
        self._steps = _compare(self._reader, value)
        self.is_equal = False

    def feed(self, text: str) -> bool:
        """Whether the text, with `text` added, is equal or may become so. Feed nothing after False."""
        self._reader.add(text)
        try:
            next(self._steps)
        except StopIteration:
            self.is_equal = True
        except (MalformedError, RecursionError):
            return False
        return True


def _compare(reader: Reader, value: Any) -> Steps[None]:
    """Comparison of one value. Raises MalformedError at the first character that differs."""
    yield from reader.blanks()
    match value:
        case dict():
            yield from _compare_object(reader, value)
        case list():
            yield from _compare_list(reader, value)
        case str():
            yield from _compare_string(reader, [_written(value)])
        case _:
            yield from _compare_scalar(reader, value)


def _compare_object(reader: Reader, value: dict[str, Any]) -> Steps[None]:
    yield from reader.expect("{")
    left = {_written(key): item for key, item in value.items()}
    keys = sorted(left)
    while keys:
        yield from reader.blanks()
        key = yield from _compare_string(reader, keys)
        keys.remove(key)
        yield from reader.blanks()
        yield from reader.expect(":")
        yield from _compare(reader, left[key])
        yield from reader.blanks()
        yield from reader.expect("," if keys else "")
    yield from reader.blanks()
    yield from reader.expect("}")


def _compare_list(reader: Reader, value: list[Any]) -> Steps[None]:
    yield from reader.expect("[")
    for place, item in enumerate(value):
        yield from reader.expect("," if place else "")
        yield from _compare(reader, item)
        yield from reader.blanks()
    yield from reader.blanks()
    yield from reader.expect("]")


def _compare_string(reader: Reader, options: list[str]) -> Steps[str]:
    """The one of `options` (JSON strings, sorted) that the text has. Raises MalformedError for another string."""
    yield from reader.expect('"')
    text, place = "", 0
    while part := (yield from reader.string_part()):
        text += _written(part)
        place = bisect.bisect_left(options, text)
        if place == len(options) or not options[place].startswith(text):
            raise MalformedError
    if options[place] != text:
        raise MalformedError
    return text


def _written(text: str) -> str:
    """A string in ASCII, an escape for each half of a surrogate pair: any part of it can be compared by itself."""
    return json.dumps(text)[1:-1]


def _compare_scalar(reader: Reader, value: Any) -> Steps[None]:
    if (yield from reader.peek()) in '"{[':
        raise MalformedError
    n_left = len(json.dumps(value)) + _SPARE
    parts: list[str] = []

    def keep(text: str) -> None:
        nonlocal n_left
        n_left -= len(text)
        if n_left < 0:
            raise MalformedError
        parts.append(text)

    yield from reader.json_value(keep)
    if not _is_same_scalar("".join(parts), value):
        raise MalformedError


def _is_same_scalar(text: str, value: Any) -> bool:
    """Python takes `true` for 1."""
    try:
        read = json.loads(text)
    except ValueError:
        return False
    return isinstance(read, bool) == isinstance(value, bool) and bool(read == value)
