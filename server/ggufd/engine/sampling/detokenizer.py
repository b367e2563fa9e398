"""Streaming detokenization: text that may be sent, in whole characters, without the beginning of a stop string or ban.

Holds back what may still become a stop string or a banned phrase and what is not yet a whole character, and nothing
more. With bans, tokens are taken back, so text is released by whole tokens: at every moment the text that was sent is
the text of the tokens that cannot be taken back any more.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from ggufd.engine.sampling.banned import NOTHING_SENT, Bans

T = TypeVar("T")
"""What is kept beside a token (its id, its log-probability) until its text is sent."""


@dataclass(slots=True)
class Delta(Generic[T]):
    """Text that may be sent now, and the items whose text is complete in all that was sent so far."""

    text: str
    items: list[T]


class StopMatcher:
    """Matcher of stop strings in growing text. They are not empty; the earliest match wins, then the longest."""

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


class _PendingToken(NamedTuple, Generic[T]):
    """Token whose text is not all sent: where its text ends, and the decoder's state before its bytes.

    `is_whole` means that its last byte ends a character, so that the text can be cut behind it.
    """

    end: int
    state: tuple[bytes, int]
    is_whole: bool
    item: T


class Detokenizer(Generic[T]):
    """Text of one sequence, fed token by token.

    After a `feed`, `stop` is the stop string that ended the text, if one did; `n_banned` is how many tokens from the
    end hold a banned phrase, if one is there: `rewind` them before anything else.
    """

    def __init__(self, stops: Sequence[str] = (), bans: Bans | None = None) -> None:
        self._matcher = StopMatcher(stops) if stops else None
        self._bans = bans
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._n_sent = 0
        self._context = NOTHING_SENT
        self._pending: deque[_PendingToken[T]] = deque()
        self.stop: str | None = None
        self.n_banned = 0

    @property
    def n_pending(self) -> int:
        """Number of tokens that can still be taken back."""
        return len(self._pending)

    def feed(self, piece: bytes, item: T, n_kept: int = 0) -> Delta[T]:
        """Add one token. After a stop string matched, nothing more may be fed.

        With bans, the last `n_kept` characters stay held back, so that their tokens can be taken back.
        """
        if self.stop is not None or self.n_banned:
            raise ValueError("the text has ended, or a banned phrase waits to be taken back")
        state = self._decoder.getstate()
        if self._matcher is None and self._bans is None and not state[0] and piece.isascii():
            # Most tokens of most requests: whole characters that nothing can hold back.
            text = piece.decode("ascii")
            self._n_sent += len(text)
            return Delta(text, [item])
        self._held += self._decoder.decode(piece)
        unfinished = bool(self._decoder.getstate()[0])
        # A token that ends inside a character is complete with the next character.
        self._pending.append(_PendingToken(self._n_sent + len(self._held) + unfinished, state, not unfinished, item))
        if self._matcher is None and self._bans is None:
            return self._send(len(self._held))
        return self._send_safe(n_kept)

    def _send_safe(self, n_kept: int) -> Delta[T]:
        """Send all but what may still become a stop string or a banned phrase; note one that is complete."""
        match = None if self._matcher is None else self._matcher.find(self._held)
        end = len(self._held) if match is None else match[0]
        n_held = 0 if match is not None else self._n_of_stop(self._held)
        if self._bans is not None:
            scan = self._bans.scan(self._held[:end], self._context)
            if scan.found is not None:
                self.n_banned = self._count_from(self._n_sent + scan.found)
                return Delta("", [])
            n_held = max(n_held, scan.n_held, n_kept)
        if match is not None:
            # Nothing follows that could make a phrase of what is there.
            self.stop = match[1]
            return self._send(end)
        safe = end - n_held
        return self._send(safe if self._bans is None else self._whole_tokens(safe))

    def _whole_tokens(self, n: int) -> int:
        """Number of the first `n` held characters that are the text of whole tokens.

        What follows them may be taken back, and something else follow: no stop string may have begun there.
        """
        ends = [pending.end - self._n_sent for pending in self._pending if pending.is_whole]
        safe = (end for end in reversed(ends) if end <= n and not self._n_of_stop(self._held[:end]))
        return next(safe, 0)

    def _n_of_stop(self, text: str) -> int:
        """Length of the end of `text` that may become a stop string."""
        return 0 if self._matcher is None else self._matcher.n_held(text)

    def _count_from(self, position: int) -> int:
        """Number of tokens from the end back to the one that holds the character at `position`."""
        return sum(1 for pending in self._pending if pending.end > position)

    def rewind(self, n: int) -> None:
        """Take back the last `n` of the pending tokens, text and all."""
        for _ in range(n):
            taken = self._pending.pop()
        self._decoder.setstate(taken.state)
        end = self._pending[-1].end if self._pending else self._n_sent
        self._held = self._held[: max(0, end - bool(taken.state[0]) - self._n_sent)]
        self.n_banned = 0

    def flush(self) -> Delta[T]:
        """Text that is still held back at the end of the sequence; bytes that never became a character are dropped.

        Tokens that only hold such bytes, or whose text a stop string cut, are not sent.
        """
        if self.stop is not None:
            return Delta("", [])
        return self._send(len(self._held))

    def _send(self, n: int) -> Delta[T]:
        text, self._held = self._held[:n], self._held[n:]
        self._n_sent += n
        if self._bans is not None:
            self._context = self._bans.after(text, self._context)
        items = []
        while self._pending and self._pending[0].end <= self._n_sent:
            items.append(self._pending.popleft().item)
        return Delta(text, items)
