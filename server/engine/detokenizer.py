"""Bytes of tokens to text that may be sent: whole characters only, and never the beginning of a stop string.

Holds back what may still become a stop string and what is not yet a whole character, and nothing more.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
"""Whatever travels beside a token (its id, its log-probability) until its text is sent."""


@dataclass(slots=True)
class Delta(Generic[T]):
    """What may be sent now: new text, and the items whose text is complete in all that was sent so far."""

    text: str
    items: list[T]


class StopMatcher:
    """Finds stop strings in growing text. Stop strings are not empty; the earliest match wins, then the longest."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max((len(stop) for stop in stops), default=0)
        self._first_characters = frozenset(stop[0] for stop in stops)

    def find(self, text: str) -> tuple[int, str] | None:
        """`(position, stop string)` of the first one in `text`."""
        found = ((text.find(stop), -len(stop), stop) for stop in self._stops)
        first = min((match for match in found if match[0] >= 0), default=None)
        return None if first is None else (first[0], first[2])

    def n_held(self, text: str) -> int:
        """Length of the longest end of `text` that is a beginning of a stop string."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first_characters:
                tail = text[start:]
                if any(stop.startswith(tail) for stop in self._stops):
                    return len(tail)
        return 0


class Detokenizer(Generic[T]):
    """The text of one sequence. Feed it token by token; `stop` is the stop string that ended it, if one did."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._matcher = StopMatcher(stops) if stops else None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._n_sent = 0
        self._pending: deque[tuple[int, T]] = deque()
        self.stop: str | None = None

    def feed(self, piece: bytes, item: T) -> Delta[T]:
        """Add one token. After a stop string matched, nothing more may be fed."""
        if self.stop is not None:
            raise ValueError("the text has ended")
        self._held += self._decoder.decode(piece)
        unfinished = bool(self._decoder.getstate()[0])
        # A token that ends inside a character is complete with the next character.
        self._pending.append((self._n_sent + len(self._held) + unfinished, item))
        if self._matcher is None:
            return self._send(len(self._held))
        match = self._matcher.find(self._held)
        if match is not None:
            position, self.stop = match
            return self._send(position)
        return self._send(len(self._held) - self._matcher.n_held(self._held))

    def flush(self) -> Delta[T]:
        """All that is still held back, at the end of the sequence; bytes that never became a character are dropped.

        Tokens that only hold such bytes, or whose text a stop string cut, are not sent.
        """
        if self.stop is not None:
            return Delta("", [])
        return self._send(len(self._held))

    def _send(self, n: int) -> Delta[T]:
        text, self._held = self._held[:n], self._held[n:]
        self._n_sent += n
        items = []
        while self._pending and self._pending[0][0] <= self._n_sent:
            items.append(self._pending.popleft()[1])
        return Delta(text, items)
