"""Speculative decoding with a draft model: a smaller model drafts tokens for a lone sequence, the target verifies them.

`DraftModel` keeps one sequence in one stream: the prefix that a sequence shares with the last one stays, and prefill of
the rest is chunked, so that decoding never halts for it. `AcceptanceEstimator` is the acceptance rate of one sequence.
A draft is only as long as it promises more tokens a second than it costs; where it does not pay, it is tried again ever
more seldom. Knows neither the target model nor the samplers: a rejected draft costs time and changes no text.
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
"""Least probabilities of the confidence classes of draft tokens, as the draft model gives them."""

_FIRST_ODDS = (0.2, 0.4, 0.6, 0.8, 0.95)
_FIRST_AVERAGE = 0.7
_LEARNING = 0.1

_CLEARLY = 1.1
"""A draft must promise this many times the tokens a second without one: what is promised is an estimate."""

_LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)

_N_TRIED = 3
"""Draft tokens of a trial where drafting does not pay."""

_FIRST_PAUSE, _LONGEST_PAUSE = 16, 256

_CHUNK = 32
"""Least tokens of a prefill chunk; as many may be uncomputed where a draft can begin."""

_PREFILL_SHARE = 0.25
"""Share of the time of the sequence's own steps that prefill of the draft model may take."""

_LONGEST_S = 0.1
"""Bound on the time of a draft, or that of a step where it is longer: new requests and aborts wait for it."""

_FEW_ROWS = 8
_SMOOTHING = 0.3


StepSeconds = Callable[[int], float]
"""Seconds of a step of the target model by its rows of one sequence; 0 when not known."""


class _ModelDraft(NamedTuple):
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
        self._draft: _ModelDraft | None = None
        self._n_pause = 0
        self._next_pause = _FIRST_PAUSE

    def note(self, draft: _ModelDraft) -> None:
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
        """Start the pauses anew: drafting pays."""
        self._next_pause = _FIRST_PAUSE

    def is_resting(self) -> bool:
        """Whether this step is one of a pause; asked once a step."""
        if self._n_pause == 0:
            return False
        self._n_pause -= 1
        return True


class DraftModel:
    """Drafts with `decoder`, a context of one stream over the draft model.

    Tokens of `n_vocab` and more are none of the target model's. `eog` ends a text: nothing is drafted beyond it. A
    draft ends before a token to which the draft model gives less probability than `p_min`.
    """

    def __init__(self, decoder: DraftDecoder, *, n_vocab: int, eog: Collection[int], p_min: float) -> None:
        self._decoder = decoder
        self._n_vocab = n_vocab
        self._eog = eog
        self._p_min = p_min
        self._tokens = array("i")
        self._token_s = 0.0
        self._prefill_s_per_token = 0.0
        self._credit_s = 0.0
        self._is_lost = False
        self.n_dropped = 0
        """Times that the state of the stream was of no use and dropped."""

    def draft(
        self, acceptance: AcceptanceEstimator, tokens: array[int], limit: int, n_left: int, step_s: StepSeconds
    ) -> tuple[int, ...]:
        """Draft tokens worth verifying after `tokens`, at most `limit`; often none. `n_left` may come until the end."""
        acceptance.settle(tokens)
        limit = min(limit, self._decoder.n_ctx - len(tokens))
        if self._is_lost or limit < 1 or step_s(1) == 0 or acceptance.is_resting():
            return ()
        try:
            if not self._keep_pace(tokens, n_left, step_s(1)):
                return ()
            draft = self._draft_tokens(acceptance, tokens, min(limit, self._affordable(step_s(1))), step_s)
        except (NoRoomError, EngineFailure) as error:
            logger.warning("the draft model is given up; answers go on without it: %s", str(error) or "no room")
            self._is_lost = True
            return ()
        acceptance.note(draft)
        return draft.tokens

    def _affordable(self, one_s: float) -> int:
        n = int(max(_LONGEST_S, one_s) / self._token_s) if self._token_s else 0
        return max(_N_TRIED, n)

    # --- prefill ------------------------------------------------------------------------------------------------------

    def _keep_pace(self, tokens: array[int], n_left: int, one_s: float) -> bool:
        """Compute uncomputed tokens, or a chunk of them; returns whether so few are left that a draft can begin.

        `n_left` steps of the sequence, of `one_s` each, are left: prefill that cannot pay within those is not begun.
        """
        self._keep(min(common_prefix(self._tokens, tokens), len(tokens) - 1))
        n_held = len(self._tokens)
        n_missing = len(tokens) - n_held
        if self._decoder.n_vocab < self._n_vocab and max(tokens[n_held:]) >= self._decoder.n_vocab:
            return False
        if n_missing <= _CHUNK:
            return True
        per_token = self._prefill_s_per_token
        if n_missing * per_token > _PREFILL_SHARE * n_left * one_s or per_token > _PREFILL_SHARE * one_s:
            return False
        # Time is saved up until it is enough for a chunk: many short ones would take longer.
        self._credit_s += _PREFILL_SHARE * one_s
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
        logger.warning("the draft model's cache is dropped, and computed anew")
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
            self._prefill_s_per_token = _smooth(self._prefill_s_per_token, seconds / len(tokens))

    # --- drafting -----------------------------------------------------------------------------------------------------

    def _draft_tokens(
        self, acceptance: AcceptanceEstimator, tokens: array[int], limit: int, step_s: StepSeconds
    ) -> _ModelDraft:
        """The likeliest tokens, one after another, as long as one more is likely to be worth its time."""
        rate = self._best_rate(acceptance.average, limit, step_s)
        pays = rate > _CLEARLY / step_s(1)
        if pays:
            acceptance.resume()
        else:
            acceptance.rest()
            limit, rate = min(limit, _N_TRIED), 0.0
        drafted: list[int] = []
        kinds: list[int] = []
        chance, row_s = 1.0, 0.0
        following: Sequence[int] = tokens[len(self._tokens) :]
        while len(drafted) < limit and chance * acceptance.average >= rate * (self._token_s + row_s):
            token, probability = self._likeliest(following)
            kind = confidence_class(probability)
            chance *= acceptance.odds[kind]
            row_s = step_s(len(drafted) + 2) - step_s(len(drafted) + 1)
            if token in self._eog or probability < self._p_min or chance < rate * row_s:
                if not drafted:
                    acceptance.expect(acceptance.odds[kind])
                break
            drafted.append(token)
            kinds.append(kind)
            following = (token,)
        return _ModelDraft(len(tokens), tuple(drafted), tuple(kinds))

    def _best_rate(self, chance: float, limit: int, step_s: StepSeconds) -> float:
        """Tokens a second with a draft of the best length, if each of its tokens is accepted with this chance."""
        best = 0.0
        for n in _LENGTHS:
            if n <= limit:
                n_expected = sum(chance**k for k in range(n + 1))
                best = max(best, n_expected / (n * self._token_s + step_s(1 + n)))
        return best

    def _likeliest(self, following: Sequence[int]) -> tuple[int, float]:
        """The likeliest token behind the stream and `following`, and its probability."""
        self._compute(following, n_outputs=1)
        return likeliest(self._decoder.logits()[0][: self._n_vocab])


def likeliest(row: Logits) -> tuple[int, float]:
    """Token with the largest of the logits, shape `[n_vocab]`, and its probability."""
    token = int(row.argmax())
    return token, 1.0 / float(np.exp(row - row[token]).sum())


def confidence_class(probability: float) -> int:
    """Confidence class of a draft token with this probability."""
    return sum(probability >= least for least in _CONFIDENCE) - 1


def _smooth(old: float, new: float) -> float:
    return new if old == 0 else old + _SMOOTHING * (new - old)
