"""Turns between the prompts and the streams of one account, while another one with far fewer slots decodes.

A step that computes a chunk of prefill and all streams is a long gap. Who asks for much causes most of these, and who
asks for little would feel each of them. So the streams of the larger account wait while a chunk of its prompts is
computed, and its prompts while its streams decode: both steps are short, and the smaller account decodes in both.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable

from ggufd.engine.sequence.sequence import SequenceState

_FAR_FEWER = 2
"""How many times the slots of a smaller account a larger one has at least. Equals share their steps."""


class AccountTurn(enum.Enum):
    """What a step computes of the account whose prompt is next: where all of it, the gap may still not grow."""

    ALL = "all"
    STEADY = "all, in a gap that does not grow"
    PROMPTS = "prompts"
    STREAMS = "streams"


class AccountTurns:
    """Alternation of prompts and streams of whoever reads beside a smaller account.

    Background work is larger than anything else.
    """

    def __init__(self) -> None:
        self._last = AccountTurn.ALL

    def next(
        self, reader: SequenceState, decoding: Iterable[SequenceState], reading: Iterable[SequenceState]
    ) -> AccountTurn:
        """Turn of the account of `reader`, which is one of those `reading`, while others are `decoding`."""
        streams = Counter(map(account_of, decoding))
        held = streams + Counter(map(account_of, reading))
        own = account_of(reader)
        if reader.is_background:
            held[own] = _FAR_FEWER * held.total()
        smallest = min((held[account] for account in streams), default=held.total())
        if not reader.is_reading or max(held.values()) < _FAR_FEWER * smallest:
            turn = AccountTurn.ALL
        elif held[own] < _FAR_FEWER * smallest:
            turn = AccountTurn.STEADY
        elif self._last is AccountTurn.PROMPTS and streams[own]:
            turn = AccountTurn.STREAMS
        else:
            turn = AccountTurn.PROMPTS
        self._last = turn
        return turn


def account_of(sequence: SequenceState) -> str:
    """Account that a sequence is computed for."""
    return sequence.request.principal.account
