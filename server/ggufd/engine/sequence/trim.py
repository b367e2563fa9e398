"""History trimming: how a client cuts a chat that outgrew its context, and the prompt that it will therefore send next.

Such a client keeps the beginning (system prompt, character card) and drops the oldest messages behind it, each turn as
many as it needs to. Knows tokens only.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ggufd.engine.backend.tokens import common_prefix
from ggufd.engine.messages.requests import CacheScope

_MIN_MOVED = 32
"""A shorter match behind the cut may be chance."""

_START_TOKENS = 3
"""So many first tokens of a message tell it from other text."""

_MAX_STARTS = 16


class Trim(NamedTuple):
    """A cut: `n_kept` tokens stayed, what came next began like one of `starts`, and `n_added` tokens were new behind.

    `before` is the token before such a beginning where beginnings have nothing in common, else None.
    """

    n_kept: int
    before: int | None
    starts: frozenset[tuple[int, ...]]
    n_added: int

    def is_start(self, tokens: array[int], at: int) -> bool:
        """Whether a message may begin there."""
        if self.before is not None and tokens[at - 1] != self.before:
            return False
        return any(tuple(tokens[at : at + len(start)]) == start for start in self.starts)

    def after(self, earlier: Trim | None) -> Trim:
        """This cut, with the message beginnings that an earlier cut of the same chat has shown."""
        if earlier is None or (earlier.n_kept, earlier.before) != (self.n_kept, self.before):
            return self
        starts = self.starts | earlier.starts
        return self._replace(starts=starts) if len(starts) <= _MAX_STARTS else self


@dataclass(slots=True)
class Chat:
    """One chat: its last prompt with the answer, its last cut, and the most tokens that its client ever sent."""

    tokens: array[int]
    cache_scope: CacheScope
    person: str
    trim: Trim | None = None
    longest: int = 0


def find_trim(chat: array[int], prompt: array[int]) -> Trim | None:
    """The cut that made `prompt` of `chat`; None when it is not that chat with tokens dropped behind its beginning."""
    n_common = common_prefix(chat, prompt)
    at = _find(chat, prompt[n_common : n_common + _MIN_MOVED], n_common + 1)
    if n_common == 0 or at is None:
        return None
    n_moved = common_prefix(chat[at:], prompt[n_common:])
    # The dropped messages and the first kept one may begin alike: the cut is before that.
    n_same = common_prefix(chat[:n_common][::-1], chat[:at][::-1])
    kept, start = n_common - n_same, at - n_same
    length = min(_START_TOKENS, n_same + 1)
    starts = frozenset(tuple(chat[place : place + length]) for place in (kept, start))
    return Trim(kept, None if n_same else chat[at - 1], starts, len(prompt) - n_common - n_moved)


def predict(chat: array[int], trim: Trim, longest: int) -> list[array[int]]:
    """Predicted beginnings of the next prompt, likeliest first: cut as before, or by one message less.

    `chat` is all of it, the last answer included; `longest` is the most tokens that its client ever sent. Nothing when
    the chat needs no cut.
    """
    n_drop = len(chat) + trim.n_added - longest
    if n_drop <= 0:
        return []
    starts = [at for at in range(trim.n_kept + 1, len(chat) - _MIN_MOVED) if trim.is_start(chat, at)]
    enough = [at for at in starts if at - trim.n_kept >= n_drop]
    less = [at for at in starts if at - trim.n_kept < n_drop]
    return [chat[: trim.n_kept] + chat[at:] for at in [*enough[:1], *less[-1:]]]


def _find(chat: array[int], head: array[int], after: int) -> int | None:
    """The first place from `after` on where `head` stands, if that is long enough to mean something."""
    if len(head) < _MIN_MOVED:
        return None
    values = np.array(chat, np.intc)
    for at in np.flatnonzero(values[after : len(chat) - len(head) + 1] == head[0]) + after:
        if chat[at : at + len(head)] == head:
            return int(at)
    return None
