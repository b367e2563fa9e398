"""Acceptance rate of a draft model's tokens in one sequence, and pauses where drafting does not pay."""

from __future__ import annotations

from array import array
from typing import NamedTuple

_CONFIDENCE = (0.0, 0.3, 0.6, 0.8, 0.95)
"""Least probabilities of the confidence classes of draft tokens, as the draft model gives them."""

_FIRST_ODDS = (0.2, 0.4, 0.6, 0.8, 0.95)
_FIRST_AVERAGE = 0.7
_LEARNING = 0.1

_FIRST_PAUSE, _LONGEST_PAUSE = 16, 256


class ModelDraft(NamedTuple):
    """Draft tokens behind the first `position`, and the confidence class of each."""

    position: int
    tokens: tuple[int, ...]
    kinds: tuple[int, ...]


class AcceptanceEstimator:
    """Acceptance rate of a draft model's tokens in one sequence.

    `odds[c]` is the rate of confidence class `c`, `average` that of all; moving averages.
    """

    def __init__(self) -> None:
        self.odds = list(_FIRST_ODDS)
        self.average = _FIRST_AVERAGE
        self.n_drafted = 0
        self.n_accepted = 0
        self._draft: ModelDraft | None = None
        self._n_pause = 0
        self._next_pause = _FIRST_PAUSE

    def note(self, draft: ModelDraft) -> None:
        """Remember a draft that is verified with the next step."""
        self._draft = draft
        self.n_drafted += len(draft.tokens)

    def settle(self, tokens: array[int]) -> None:
        """Learn from the tokens that were sampled for the last draft, up to the first that differs."""
        draft, self._draft = self._draft, None
        if draft is None:
            return
        for drafted, kind, token in zip(draft.tokens, draft.kinds, tokens[draft.position :], strict=False):
            is_accepted = drafted == token
            self.n_accepted += is_accepted
            self.odds[kind] += _LEARNING * (is_accepted - self.odds[kind])
            self.expect(float(is_accepted))
            if not is_accepted:
                return

    def expect(self, chance: float) -> None:
        """Count a token: 1 for an accepted one, 0 for a rejected one, the chance of one that was not drafted for it."""
        self.average += _LEARNING * (chance - self.average)

    def rest(self) -> None:
        """Pause drafting, twice as long as the last time: it does not pay now."""
        self._n_pause, self._next_pause = self._next_pause, min(2 * self._next_pause, _LONGEST_PAUSE)

    def resume(self) -> None:
        """End the pause and start them anew: drafting pays."""
        self._n_pause, self._next_pause = 0, _FIRST_PAUSE

    def is_resting(self) -> bool:
        """Whether this step is one of a pause; asked once a step."""
        if self._n_pause == 0:
            return False
        self._n_pause -= 1
        return True


def confidence_class(probability: float) -> int:
    """Confidence class of a draft token with this probability."""
    return sum(probability >= least for least in _CONFIDENCE) - 1
