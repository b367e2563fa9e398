"""A draft model: a smaller one of the same vocabulary writes ahead of a lone sequence, and the large one checks it.

`DraftModel` keeps one chat in one stream: what a sequence shares with the last one stays, the rest is read a little at
a time, so that nobody's answer halts for it. `AcceptanceEstimator` follows how often such guesses come true in one
sequence. A guess is made only as far as it promises more tokens a second than it costs; what does not pay is tried
again ever more seldom. Knows neither the large model nor the samplers: a wrong guess costs time and changes no text.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

from ggufd.engine.backend.interfaces import DraftDecoder
from ggufd.engine.backend.tokens import common_prefix
from ggufd.errors import EngineFailure
from ggufd.llama.context.batch import Logits, NoRoomError

logger = logging.getLogger(__name__)

_STREAM = 0

_CONFIDENCE = (0.0, 0.3, 0.6, 0.8, 0.95)
"""A guess to which the draft model gives as much probability, or more, is of one class."""

_FIRST_ODDS = (0.2, 0.4, 0.6, 0.8, 0.95)
_FIRST_AVERAGE = 0.7
_LEARNING = 0.1

_CLEARLY = 1.1
"""As for other guesses: what is promised is an estimate."""

_LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)

_N_TRIED = 3
"""So many tokens are guessed where it does not pay, to learn whether it would."""

_FIRST_PAUSE, _LONGEST_PAUSE = 16, 256

_CHUNK = 32
"""So many tokens are read at once at least; no more are missing where it keeps pace."""

_READING_SHARE = 0.25
"""Of the time of the sequence's own steps, at most, while the draft model reads what it has missed."""

_LONGEST_S = 0.1
"""A newcomer, or a client that leaves, waits no longer for a guess, or for as long as a step takes anyway."""

_FEW_ROWS = 8
_SMOOTHING = 0.3

StepSeconds = Callable[[int], float]
"""What a step of the large model takes with so many rows of one sequence; 0 when that is not known."""


class _ModelDraft(NamedTuple):
    """Tokens that may follow the first `position`, and the class of each."""

    position: int
    tokens: tuple[int, ...]
    kinds: tuple[int, ...]


class AcceptanceEstimator:
    """How a draft model's guesses fare in one sequence.

    `odds[c]` is the share of guesses of confidence class `c` that came true, `average` that of all; moving averages.
    """

    def __init__(self) -> None:
        self.odds = list(_FIRST_ODDS)
        self.average = _FIRST_AVERAGE
        self.n_drafted = 0
        self.n_accepted = 0
        self._guess: _ModelDraft | None = None
        self._n_pause = 0
        self._next_pause = _FIRST_PAUSE

    def note(self, guess: _ModelDraft) -> None:
        """These tokens are checked with the next step."""
        self._guess = guess
        self.n_drafted += len(guess.tokens)

    def settle(self, tokens: array[int]) -> None:
        """Learn from the last guess what the sequence said instead, up to where they part."""
        guess, self._guess = self._guess, None
        if guess is None:
            return
        for guessed, kind, token in zip(guess.tokens, guess.kinds, tokens[guess.position :], strict=False):
            came_true = guessed == token
            self.n_accepted += came_true
            self.odds[kind] += _LEARNING * (came_true - self.odds[kind])
            self.expect(float(came_true))
            if not came_true:
                return

    def expect(self, chance: float) -> None:
        """A guess came true, did not, or was not made for having no better chance."""
        self.average += _LEARNING * (chance - self.average)

    def rest(self) -> None:
        """It does not pay now."""
        self._n_pause, self._next_pause = self._next_pause, min(2 * self._next_pause, _LONGEST_PAUSE)

    def resume(self) -> None:
        """It pays."""
        self._next_pause = _FIRST_PAUSE

    def is_resting(self) -> bool:
        """Whether this step is one of the pause; asked once a step."""
        if self._n_pause == 0:
            return False
        self._n_pause -= 1
        return True


class DraftModel:
    """Guesses with `decoder`, a context of one stream over the draft model.

    Tokens of `n_vocab` and more are none of the large model's. `eog` ends a text: nothing is guessed beyond it. A guess
    ends before a token to which the draft model gives less probability than `p_min`.
    """

    def __init__(self, decoder: DraftDecoder, *, n_vocab: int, eog: Collection[int], p_min: float) -> None:
        self._decoder = decoder
        self._n_vocab = n_vocab
        self._eog = eog
        self._p_min = p_min
        self._tokens = array("i")
        self._token_s = 0.0
        self._read_s_per_token = 0.0
        self._credit_s = 0.0
        self._is_lost = False
        self.n_dropped = 0
        """Times that what was read was of no use and dropped."""

    def draft(
        self, trust: AcceptanceEstimator, tokens: array[int], limit: int, n_left: int, step_s: StepSeconds
    ) -> tuple[int, ...]:
        """The tokens worth checking after `tokens`, at most `limit`; often none. `n_left` may come until the end."""
        trust.settle(tokens)
        limit = min(limit, self._decoder.n_ctx - len(tokens))
        if self._is_lost or limit < 1 or step_s(1) == 0 or trust.is_resting():
            return ()
        try:
            if not self._keep_pace(tokens, n_left, step_s(1)):
                return ()
            guess = self._guess(trust, tokens, min(limit, self._affordable(step_s(1))), step_s)
        except (NoRoomError, EngineFailure) as error:
            logger.warning("the draft model is given up; answers go on without it: %s", str(error) or "no room")
            self._is_lost = True
            return ()
        trust.note(guess)
        return guess.tokens

    def _affordable(self, one_s: float) -> int:
        n = int(max(_LONGEST_S, one_s) / self._token_s) if self._token_s else 0
        return max(_N_TRIED, n)

    # --- reading ------------------------------------------------------------------------------------------------------

    def _keep_pace(self, tokens: array[int], n_left: int, one_s: float) -> bool:
        """Read what is missing, or a part of it; whether only so little is left that a guess can begin with it.

        `n_left` steps of the sequence, of `one_s` each, are left: reading that cannot pay within those is not begun.
        """
        self._keep(min(common_prefix(self._tokens, tokens), len(tokens) - 1))
        n_held = len(self._tokens)
        n_missing = len(tokens) - n_held
        if self._decoder.n_vocab < self._n_vocab and max(tokens[n_held:]) >= self._decoder.n_vocab:
            return False
        if n_missing <= _CHUNK:
            return True
        per_token = self._read_s_per_token
        if n_missing * per_token > _READING_SHARE * n_left * one_s or per_token > _READING_SHARE * one_s:
            return False
        # Time that is spared until it is enough for a chunk: many short reads would take longer.
        self._credit_s += _READING_SHARE * one_s
        n_affordable = int(self._credit_s / per_token) if per_token else _CHUNK
        if n_affordable >= _CHUNK:
            self._credit_s = 0.0
            n = min(n_affordable, n_missing - 1, self._decoder.n_batch)
            self._compute(tokens[n_held : n_held + n], n_outputs=0)
        return len(tokens) - len(self._tokens) <= _CHUNK

    def _keep(self, n_keep: int) -> None:
        """Keep the first `n_keep` tokens; none where the stream holds others than it should, or cannot be cut back."""
        if self._holds_all() and (n_keep == len(self._tokens) or self._decoder.trim(_STREAM, n_keep)):
            del self._tokens[n_keep:]
            if self._holds_all():
                return
        logger.warning("what the draft model had read is dropped, and read anew")
        self.n_dropped += 1
        self._decoder.trim(_STREAM, 0)
        del self._tokens[:]

    def _holds_all(self) -> bool:
        """Whether the stream holds as many tokens as it is taken to hold, by llama.cpp's own account."""
        return self._decoder.n_past(_STREAM) == len(self._tokens)

    def _compute(self, tokens: Sequence[int], *, n_outputs: int) -> None:
        batch = self._decoder.batch
        batch.clear()
        batch.add(_STREAM, tokens, len(self._tokens), n_outputs)
        seconds = self._decoder.decode()
        self._tokens.extend(tokens)
        if len(tokens) <= _FEW_ROWS:
            self._token_s = _smooth(self._token_s, seconds)
        if len(tokens) >= _CHUNK:
            self._read_s_per_token = _smooth(self._read_s_per_token, seconds / len(tokens))

    # --- guessing -----------------------------------------------------------------------------------------------------

    def _guess(self, trust: AcceptanceEstimator, tokens: array[int], limit: int, step_s: StepSeconds) -> _ModelDraft:
        """Token by token the likeliest, as long as one more is likely to be worth its time."""
        rate = self._best_rate(trust.average, limit, step_s)
        pays = rate > _CLEARLY / step_s(1)
        if pays:
            trust.resume()
        else:
            trust.rest()
            limit, rate = min(limit, _N_TRIED), 0.0
        guessed: list[int] = []
        kinds: list[int] = []
        chance, row_s = 1.0, 0.0
        following: Sequence[int] = tokens[len(self._tokens) :]
        while len(guessed) < limit and chance * trust.average >= rate * (self._token_s + row_s):
            token, probability = self._likeliest(following)
            kind = confidence_class(probability)
            chance *= trust.odds[kind]
            row_s = step_s(len(guessed) + 2) - step_s(len(guessed) + 1)
            if token in self._eog or probability < self._p_min or chance < rate * row_s:
                if not guessed:
                    trust.expect(trust.odds[kind])
                break
            guessed.append(token)
            kinds.append(kind)
            following = (token,)
        return _ModelDraft(len(tokens), tuple(guessed), tuple(kinds))

    def _best_rate(self, chance: float, limit: int, step_s: StepSeconds) -> float:
        """Tokens a second with a guess of the best length, if each of its tokens comes true with this chance."""
        best = 0.0
        for n in _LENGTHS:
            if n <= limit:
                n_expected = sum(chance**k for k in range(n + 1))
                best = max(best, n_expected / (n * self._token_s + step_s(1 + n)))
        return best

    def _likeliest(self, following: Sequence[int]) -> tuple[int, float]:
        """The token after all that is held and `following`, and its probability."""
        self._compute(following, n_outputs=1)
        return likeliest(self._decoder.logits()[0][: self._n_vocab])


def likeliest(row: Logits) -> tuple[int, float]:
    """The token with the largest of the logits, shape `[n_vocab]`, and its probability."""
    token = int(row.argmax())
    return token, 1.0 / float(np.exp(row - row[token]).sum())


def confidence_class(probability: float) -> int:
    """The class of a guess with this probability."""
    return sum(probability >= least for least in _CONFIDENCE) - 1


def _smooth(old: float, new: float) -> float:
    return new if old == 0 else old + _SMOOTHING * (new - old)
