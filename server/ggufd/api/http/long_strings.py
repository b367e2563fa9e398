"""Long strings of a JSON body, such as images, taken out before it is parsed and put back behind it.

A parser looks at each character, 3 ms for a megabyte, and nobody else is served meanwhile. Searching for the next quote
takes a hundredth of that. Only strings without escapes are taken out; the JSON around them stays what it was, and so
does what is wrong with it.
"""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple

_LONG_BYTES = 64 << 10
"""Of twice as many without a quote some are in any case found."""

_ELSEWHERE = (b"\\", b"\n", b"\r", b"\t", b"\0")
"""What is in no string that is written as it reads. JSON forbids the other control characters too, but as escapes they
may stand in any string, so nobody relies on that.
"""


class ShortBody(NamedTuple):
    """A body without its long strings, and these by the names that stand in their places."""

    raw: bytes
    found: dict[str, str]

    def whole(self, value: Any) -> Any:
        """What was parsed, with the long strings in their places again."""
        return _restored(value, self.found) if self.found else value


def take_out(raw: bytes) -> ShortBody:
    """Take the long strings out of a body, those in ASCII."""
    pieces: list[bytes] = []
    found: dict[str, str] = {}
    key = secrets.token_hex(16) if len(raw) >= _LONG_BYTES else ""
    done = at = 0
    while at + _LONG_BYTES <= len(raw):
        if raw.find(b'"', at, at + _LONG_BYTES) >= 0:
            at += _LONG_BYTES
            continue
        start, end = raw.rfind(b'"', done, at) + 1, raw.find(b'"', at + _LONG_BYTES)
        if end < 0:
            break
        text = _plain(raw, start, end) if start > done else None
        if text is not None:
            name = f"{key}{len(found)}"
            found[name] = text
            pieces += [raw[done:start], name.encode()]
            done = end
        at = end + 1
    return ShortBody(b"".join([*pieces, raw[done:]]), found)


def _plain(raw: bytes, start: int, end: int) -> str | None:
    """What stands between two quotes, if that is a whole string, and written as it reads.

    Outside of strings a quote is followed by no letter and no digit, whatever the JSON is. One behind a backslash
    begins no string.
    """
    is_begun = raw[start : start + 1].isalnum() and raw[start - 2 : start - 1] != b"\\"
    if not is_begun or any(raw.find(one, start, end) >= 0 for one in _ELSEWHERE):
        return None
    try:
        return str(memoryview(raw)[start:end], "ascii")
    except UnicodeDecodeError:
        return None


def _restored(value: Any, found: dict[str, str]) -> Any:
    """Recursion is safe: the body was checked for its depth."""
    if isinstance(value, str):
        return found.get(value, value)
    if isinstance(value, dict):
        return {found.get(name, name): _restored(child, found) for name, child in value.items()}
    if isinstance(value, list):
        return [_restored(child, found) for child in value]
    return value
