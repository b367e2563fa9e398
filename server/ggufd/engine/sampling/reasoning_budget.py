"""Reasoning budget: a bound on the tokens that a model may spend between its thinking tags.

When the budget is used up, or the reasoning loops, the tokens that close it are forced, one after another. Knows the
tags as text, and nothing of chat templates.
"""

from __future__ import annotations

import enum
import math
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from ggufd.engine.backend.interfaces import Row
from ggufd.engine.messages.sampling import ReasoningBudget

_LOOK_EVERY = 16
_LONGEST_LOOP = 128
_MIN_ROUNDS = 4
_MIN_LOOPING = 96


class Stage(enum.Enum):
    """Place in the text: before the reasoning, inside, between two blocks of it, or past it (or without any)."""

    BEFORE = "before"
    INSIDE = "inside"
    BETWEEN = "between"
    OVER = "over"


class _ReasoningState(NamedTuple):
    """State after one token. `tail` is the end of the text, in which a tag may begin.

    `n_inside` is the number of reasoning tokens, in all blocks. `n_ended` is how many tokens of the forced ending are
    there; None means that it was not begun.
    """

    stage: Stage
    tail: bytes
    n_inside: int = 0
    n_ended: int | None = None


class ReasoningGuard:
    """Enforcement of `budget` along one sequence: `note` each token, `apply` before each is sampled."""

    def __init__(self, budget: ReasoningBudget) -> None:
        self._budget = budget
        self._opening, self._closing = budget.opening.encode(), budget.closing.encode()
        self._reopening = budget.reopening.encode()
        first = _ReasoningState(Stage.BEFORE if self._opening else Stage.INSIDE, b"")
        self._states = [self._checked(first, array("i"))]

    @property
    def stage(self) -> Stage:
        return self._states[-1].stage

    @property
    def is_ending(self) -> bool:
        """Whether the next token is forced."""
        return self.stage is Stage.INSIDE and self._states[-1].n_ended is not None

    def note(self, piece: bytes, tokens: array[int]) -> None:
        """Follow one more token, whose bytes are `piece`; `tokens` are all of the sequence."""
        state = self._states[-1]
        match state.stage:
            case Stage.BEFORE:
                state = self._look_for_opening(self._opening, state, piece)
            case Stage.BETWEEN:
                state = self._look_for_opening(self._reopening, state, piece)
            case Stage.INSIDE:
                state = self._look_for_closing(state, piece, tokens)
        self._states.append(self._checked(state, tokens))

    def rewind(self, n: int) -> None:
        """Take back the last `n` tokens. An ending that began with the first of them is not tried again."""
        del self._states[-n:]
        if self.is_ending:
            self._states[-1] = _ReasoningState(Stage.OVER, b"")

    def apply(self, row: Row) -> None:
        """Mask all but the next token of the ending, where that is due and allowed."""
        if not self.is_ending:
            return
        n_ended = self._states[-1].n_ended
        assert n_ended is not None
        token = self._budget.ending[n_ended]
        if row[token] == -math.inf:
            self._states[-1] = _ReasoningState(Stage.OVER, b"")
            return
        row[:] = -math.inf
        row[token] = 0.0

    def _look_for_opening(self, opening: bytes, state: _ReasoningState, piece: bytes) -> _ReasoningState:
        text = (state.tail + piece).lstrip()
        if text.startswith(opening):
            return self._look_for_closing(
                _ReasoningState(Stage.INSIDE, b"", state.n_inside - 1), text[len(opening) :], ()
            )
        return state._replace(stage=state.stage if opening.startswith(text) else Stage.OVER, tail=text)

    def _look_for_closing(self, state: _ReasoningState, piece: bytes, tokens: Sequence[int]) -> _ReasoningState:
        text = state.tail + piece
        n_ended = state.n_ended
        if n_ended is not None:
            n_ended = n_ended + 1 if tokens[-1] == self._budget.ending[n_ended] else 0
        if self._closing in text or n_ended == len(self._budget.ending):
            return _ReasoningState(Stage.BETWEEN if self._reopening else Stage.OVER, b"", state.n_inside)
        return _ReasoningState(Stage.INSIDE, text[-len(self._closing) :], state.n_inside + 1, n_ended)

    def _checked(self, state: _ReasoningState, tokens: array[int]) -> _ReasoningState:
        """The state, with the ending begun where the budget is used up or the reasoning loops."""
        if state.stage is not Stage.INSIDE or state.n_ended is not None:
            return state
        limit = self._budget.max_tokens
        is_too_long = limit is not None and state.n_inside >= limit
        is_time_to_look = state.n_inside >= _MIN_LOOPING and state.n_inside % _LOOK_EVERY == 0
        if is_too_long or (is_time_to_look and is_looping(tokens[-state.n_inside :])):
            return state._replace(n_ended=0)
        return state


def is_looping(tokens: array[int]) -> bool:
    """Whether `tokens` end in a repetition: four times at least, and 96 tokens in all."""
    for length in range(1, _LONGEST_LOOP + 1):
        n = max(_MIN_ROUNDS * length, _MIN_LOOPING)
        if n > len(tokens):
            return False
        if tokens[-n:-length] == tokens[-n + length :]:
            return True
    return False
