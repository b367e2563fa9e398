"""A part of a sequence's text that may only become so long: what a model thinks before it answers, say.

The part is told by the texts round it. When it is too long, or goes round in circles, the tokens that end it are the
only ones left, one after another. Knows nothing of what the part means.
"""

from __future__ import annotations

import enum
import math
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from ggufd.engine.backend.interfaces import Row
from ggufd.engine.messages.sampling import SpanLimit

_LOOK_EVERY = 16
_LONGEST_CIRCLE = 128
_MIN_ROUNDS = 4
_MIN_CIRCLING = 96


class Stage(enum.Enum):
    """Where a sequence is: before the part, inside of it, behind a part that may go on, or past it (or without one)."""

    BEFORE = "before"
    INSIDE = "inside"
    BETWEEN = "between"
    OVER = "over"


class _SpanState(NamedTuple):
    """After one token. `tail` is the end of the text, in which a mark may begin.

    `n_inside` is how many tokens the part has, in all its pieces. `n_said` is how many tokens of the ending are there;
    None means that it was not begun.
    """

    stage: Stage
    tail: bytes
    n_inside: int = 0
    n_said: int | None = None


class SpanGuard:
    """Watches one sequence by `limit`: `note` each token, `apply` before each is chosen."""

    def __init__(self, limit: SpanLimit) -> None:
        self._limit = limit
        self._opening, self._closing = limit.opening.encode(), limit.closing.encode()
        self._reopening = limit.reopening.encode()
        first = _SpanState(Stage.BEFORE if self._opening else Stage.INSIDE, b"")
        self._states = [self._checked(first, array("i"))]

    @property
    def stage(self) -> Stage:
        return self._states[-1].stage

    @property
    def is_ending(self) -> bool:
        """Whether `apply` will leave one token."""
        return self.stage is Stage.INSIDE and self._states[-1].n_said is not None

    def note(self, piece: bytes, tokens: array[int]) -> None:
        """`tokens`, all of the sequence, have one more, whose bytes are `piece`."""
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
        """The last `n` tokens were taken back. An ending of which the first of them was is not tried again."""
        del self._states[-n:]
        if self.is_ending:
            self._states[-1] = _SpanState(Stage.OVER, b"")

    def apply(self, row: Row) -> None:
        """Leave nothing but the next token of the ending, where that is due and allowed."""
        if not self.is_ending:
            return
        n_said = self._states[-1].n_said
        assert n_said is not None
        token = self._limit.ending[n_said]
        if row[token] == -math.inf:
            self._states[-1] = _SpanState(Stage.OVER, b"")
            return
        row[:] = -math.inf
        row[token] = 0.0

    def _look_for_opening(self, opening: bytes, state: _SpanState, piece: bytes) -> _SpanState:
        text = (state.tail + piece).lstrip()
        if text.startswith(opening):
            return self._look_for_closing(_SpanState(Stage.INSIDE, b"", state.n_inside - 1), text[len(opening) :], ())
        return state._replace(stage=state.stage if opening.startswith(text) else Stage.OVER, tail=text)

    def _look_for_closing(self, state: _SpanState, piece: bytes, tokens: Sequence[int]) -> _SpanState:
        text = state.tail + piece
        n_said = state.n_said
        if n_said is not None:
            n_said = n_said + 1 if tokens[-1] == self._limit.ending[n_said] else 0
        if self._closing in text or n_said == len(self._limit.ending):
            return _SpanState(Stage.BETWEEN if self._reopening else Stage.OVER, b"", state.n_inside)
        return _SpanState(Stage.INSIDE, text[-len(self._closing) :], state.n_inside + 1, n_said)

    def _checked(self, state: _SpanState, tokens: array[int]) -> _SpanState:
        """The state, with the ending begun if it is time for that."""
        if state.stage is not Stage.INSIDE or state.n_said is not None:
            return state
        limit = self._limit.max_tokens
        is_too_long = limit is not None and state.n_inside >= limit
        is_time_to_look = state.n_inside >= _MIN_CIRCLING and state.n_inside % _LOOK_EVERY == 0
        if is_too_long or (is_time_to_look and goes_in_circles(tokens[-state.n_inside :])):
            return state._replace(n_said=0)
        return state


def goes_in_circles(tokens: array[int]) -> bool:
    """Whether the end of `tokens` is the same few over and over: four times at least, and 96 tokens in all."""
    for length in range(1, _LONGEST_CIRCLE + 1):
        n = max(_MIN_ROUNDS * length, _MIN_CIRCLING)
        if n > len(tokens):
            return False
        if tokens[-n:-length] == tokens[-n + length :]:
            return True
    return False
