"""Turns between the prompts and the streams of large accounts, while one with far fewer slots decodes.

A step that computes a chunk of prefill and all streams is a long gap. Who asks for much causes most of these, and who
asks for little would feel each of them. So the streams of larger accounts wait while a chunk of such a one's prompts is
computed, and the prompts while they decode: both steps are short, and the smaller account decodes in both.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable

from ggufd.engine.sequence.sequence import SequenceState
from ggufd.keys.principal import BACKGROUND

_FAR_FEWER = 2
"""How many times the slots of a smaller account a larger one has at least. Equals share their steps."""


class AccountTurn(enum.Enum):
    """Rows of the larger accounts in a step: all, only those of prompts, or only those of streams that decode.

    In `STEADY` a smaller account reads: all are computed, and the gap does not grow with what waits.
    """

    ALL = "all"
    STEADY = "steady"
    PROMPTS = "prompts"
    STREAMS = "streams"


class AccountTurns:
    """Alternation of prompts and streams of the accounts that hold far more slots than one that decodes.

    Background work is larger than anything else.
    """

    def __init__(self) -> None:
        self._last = AccountTurn.ALL
        self._larger: frozenset[str] = frozenset()

    def next(
        self, reader: SequenceState, decoding: Iterable[SequenceState], reading: Iterable[SequenceState]
    ) -> AccountTurn:
        """Turn of the next step, whose first prompt is that of `reader`, one of those `reading`, beside others."""
        streams = Counter(map(account_of, decoding))
        held = streams + Counter(map(account_of, reading))
        if BACKGROUND in held:
            held[BACKGROUND] = _FAR_FEWER * held.total()
        smallest = min((held[account] for account in streams), default=held.total())
        self._larger = frozenset(account for account, n in held.items() if n >= _FAR_FEWER * smallest)
        if not self._larger or not reader.is_reading:
            turn = AccountTurn.ALL
        elif account_of(reader) not in self._larger:
            turn = AccountTurn.STEADY
        elif self._last is AccountTurn.PROMPTS and self._larger & streams.keys():
            turn = AccountTurn.STREAMS
        else:
            turn = AccountTurn.PROMPTS
        self._last = turn
        return turn

    def waits(self, sequence: SequenceState) -> bool:
        """Whether its account's streams wait while prompts have their turn."""
        return account_of(sequence) in self._larger


def account_of(sequence: SequenceState) -> str:
    """Account that a sequence is computed for."""
    return sequence.request.principal.account
