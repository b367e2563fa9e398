"""Bounded reading of binary headers: numbers and strings from bytes that may be damaged or cut.

Impossible or absurd values raise ModelError, one line that names the place. Knows no format.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NoReturn

from ggufd.errors import ModelError

ReadAt = Callable[[int, int], bytes]
"""`(offset, n)` to at most `n` bytes from there: a file, or a server that answers range requests."""

MAX_TEXT = 1 << 20
"""Bytes of one string that is kept."""

_MAX_HEADER = 256 << 20
_MAX_STRINGS = 1 << 22
"""Over all arrays of strings. The largest vocabularies, merges included, have under a million."""
_WINDOW = 1 << 20


class ByteReader:
    """Reader of `n_bytes` bytes from the front, each read checked against the end; `name` is shown in errors."""

    def __init__(self, read_at: ReadAt, n_bytes: int, name: str) -> None:
        self._read_at = read_at
        self._end = n_bytes
        self._window = b""
        self._window_at = 0
        self._strings_left = _MAX_STRINGS
        self.name = name
        self.at = 0
        self.where = "the first bytes"
        """What is being read, for errors."""

    def fail(self, what: str) -> NoReturn:
        raise ModelError(f"{self.name}: damaged at byte {self.at:,} ({self.where}): {what}")

    def peek(self, n: int) -> bytes:
        """Up to `n` bytes; fewer at the end of the file."""
        n = min(n, self._end - self.at)
        start = self.at - self._window_at
        if start < 0 or start + n > len(self._window):
            self._window_at = self.at
            self._window = self._read_at(self.at, max(n, min(_WINDOW, self._end - self.at)))
            start = 0
        return self._window[start : start + n]

    def take(self, n: int) -> bytes:
        self._check(n)
        data = self.peek(n)
        if len(data) != n:
            # The file has become shorter since its size was asked.
            self._end = self.at + len(data)
            self._check(n)
        self.at += n
        return data

    def skip(self, n: int) -> None:
        self._check(n)
        self.at += n

    def number(self, letter: str) -> int:
        # Floats come through here too; who asks for "f" or "d" knows.
        value: int = struct.unpack("<" + letter, self.take(struct.calcsize(letter)))[0]
        return value

    def count(self, things: str, limit: int) -> int:
        count = self.number("Q")
        if count > limit:
            self.fail(f"{count:,} {things}, more than {limit:,} are not believable")
        return count

    def text(self, limit: int) -> str:
        n = self.number("Q")
        if n > limit:
            self._check(n)
            self.fail(f"a name of {n:,} bytes, at most {limit:,} are possible")
        return self.take(n).decode("utf-8", "replace")

    def texts(self, count: int) -> list[bytes]:
        """The next `count` strings."""
        self._count_strings(count)
        unpack = struct.Struct("<Q").unpack_from
        found: list[bytes] = []
        while len(found) < count:
            # The first of every window is read with care, the rest of the window quickly.
            found.append(self._bytes())
            window, start = self._window, self.at - self._window_at
            at, last = start, len(window) - 8
            while len(found) < count and at <= last:
                end = at + 8 + unpack(window, at)[0]
                if end > len(window):
                    break
                found.append(window[at + 8 : end])
                at = end
            self.skip(at - start)
        return found

    def _bytes(self) -> bytes:
        n = self.number("Q")
        if n > MAX_TEXT:
            self._check(n)
            self.fail(f"a token of {n:,} bytes is not believable")
        return self.take(n)

    def _count_strings(self, count: int) -> None:
        self._strings_left -= count
        if self._strings_left < 0:
            self.fail(f"more than {_MAX_STRINGS:,} strings are not believable")

    def skip_texts(self, count: int) -> None:
        """Skip `count` strings. Runs once per merge, so the loop is kept tight."""
        self._count_strings(count)
        unpack = struct.Struct("<Q").unpack_from
        while count:
            self._check(8)
            self.peek(8)
            window, at = self._window, self.at - self._window_at
            last = len(window) - 8
            if last < at:
                self.take(8)
            while count and at <= last:
                at += 8 + unpack(window, at)[0]
                count -= 1
            self.skip(at - (self.at - self._window_at))

    def check_room(self, count: int, size: int, things: str) -> None:
        """Check that the rest of the file can hold that many elements. Raises ModelError."""
        if count * size > self._end - self.at:
            self.fail(
                f"{count:,} {things} are announced, but only {self._end - self.at:,} bytes follow; the download was "
                "cut or the file is damaged: fetch it again"
            )

    def _check(self, n: int) -> None:
        if n > self._end - self.at:
            raise ModelError(
                f"{self.name}: ends within its header, at byte {self._end:,} ({self.where}); the download was cut or "
                "the file is damaged: fetch it again"
            )
        if self.at + n > _MAX_HEADER:
            self.fail(f"a header of more than {_MAX_HEADER >> 20} MiB is not believable")
