"""Guessing ahead: a text that repeats itself is continued from its earlier place, and a batch checks the guess.

`PromptLookup` follows one sequence's text and knows, whenever its last tokens stood there before, what came after them.
`Speculator` decides how many of those tokens are worth a row each, by how often such guesses came true and by what a
step with more rows was measured to cost; where none are, it asks the draft model, if there is one. The guess changes
no output: every token is sampled from its own row, and the first one that was guessed wrongly ends the step. Knows no
samplers.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

import numpy as np

from ggufd.engine.speculation.draft_model import AcceptanceEstimator, DraftModel

_N_GRAM = 3
"""So many tokens in a row must have stood there before."""

_TOKEN_BITS = 21
_MAX_INDEXED = 8192
"""Tokens of a prompt that one call takes into the index: about a millisecond."""

_RUNS = (3, 5, 9, 17)
"""A run of as many tokens that already came true, or more, is one class: long ones break more seldom."""

_FIRST_ODDS = (0.4, 0.6, 0.8, 0.92)
_LEARNING = 0.2

_SHORTEST = 3
"""Tokens of a sequence's first guess at most: with the token before them four rows. Nothing is known of it yet."""

_CLEARLY = 1.1
"""A guess must promise this much more tokens a second: what is promised is an estimate."""

_FORGET_STEPS = 2000
_SMOOTHING = 0.3


class _LookupDraft(NamedTuple):
    """Tokens that may follow the first `position`."""

    position: int
    tokens: tuple[int, ...]


class PromptLookup:
    """Where a sequence's text runs along an earlier place of itself, and how far such runs went so far.

    `odds[c]` is the share of guesses of run class `c` that came true, a moving average; learned from every token, also
    from those that nobody guessed aloud. `longest` bounds a guess: one that came true whole lets the next step have
    twice as many rows, one that did not takes a quarter. Not more: runs end, and the odds say how good the next one is.
    """

    def __init__(self, n_prompt: int) -> None:
        self.odds = list(_FIRST_ODDS)
        self.longest = _SHORTEST
        self._guess = _LookupDraft(0, ())
        self._n_prompt = n_prompt
        self._index: dict[int, int] = {}
        self._n_seen = 0
        self._source: int | None = None
        self._run = 0

    def follow(self, tokens: array[int]) -> None:
        """Take note of the tokens that are new."""
        self._settle(tokens)
        if self._n_seen < self._n_prompt:
            self._index_prompt(tokens)
        while self._n_prompt <= self._n_seen < len(tokens):
            self._note(tokens, self._n_seen)
            self._n_seen += 1

    def _settle(self, tokens: array[int]) -> None:
        """Learn from the last guess how long the next one may be."""
        (position, guessed), self._guess = self._guess, _LookupDraft(0, ())
        n = len(guessed)
        came = tuple(tokens[position : position + n])
        if came != guessed[: len(came)]:
            self.longest = max(_SHORTEST, self.longest * 3 // 4)
        elif n and len(came) == n:
            self.longest = max(self.longest, 2 * n + 1)

    def rewind(self, n_tokens: int) -> None:
        """All but the first `n_tokens` were taken back: what comes next is found anew."""
        self._guess = _LookupDraft(0, ())
        self._n_prompt = min(self._n_prompt, n_tokens)
        if n_tokens < self._n_seen:
            self._n_seen, self._source = n_tokens, None

    def restart(self, n_tokens: int) -> None:
        """The text is another one, of `n_tokens` so far: all that is still known is how far runs went."""
        self._guess = _LookupDraft(0, ())
        self._index.clear()
        self._n_prompt, self._n_seen, self._source = n_tokens, 0, None

    def _index_prompt(self, tokens: array[int]) -> None:
        """Remember where the prompt's n-grams end, of equal ones the last; at its end find where it goes on."""
        end = min(self._n_prompt, self._n_seen + _MAX_INDEXED)
        start = max(0, self._n_seen - _N_GRAM + 1)
        part = np.array(tokens[start:end], np.int64)
        if len(part) >= _N_GRAM:
            keys = part[:-2] << 2 * _TOKEN_BITS | part[1:-1] << _TOKEN_BITS | part[2:]
            *before, last = zip(keys.tolist(), range(start + _N_GRAM, end + 1), strict=True)
            self._index.update(before)
            if end == self._n_prompt:
                self._find(tokens, end)
            self._index.update([last])
        self._n_seen = end

    def _note(self, tokens: array[int], position: int) -> None:
        """The token at `position` is known: did it come true, and where does the text run now?"""
        if self._source is not None:
            came_true = tokens[self._source] == tokens[position]
            kind = run_class(self._run)
            self.odds[kind] += _LEARNING * (came_true - self.odds[kind])
            self._source = self._source + 1 if came_true else None
            self._run += 1
        if position + 1 >= _N_GRAM:
            if self._source is None:
                self._find(tokens, position + 1)
            self._index[_key(tokens, position + 1)] = position + 1

    def _find(self, tokens: array[int], end: int) -> None:
        """Where the last tokens before `end` stood before, and since when both places agree."""
        source = self._index.get(_key(tokens, end)) if end >= _N_GRAM else None
        # After a text was cut back the index may tell of tokens that are gone.
        if source is None or source >= end or tokens[source - _N_GRAM : source] != tokens[end - _N_GRAM : end]:
            return
        self._source, self._run = source, _N_GRAM
        while self._run < min(source, _RUNS[-1]) and tokens[source - self._run - 1] == tokens[end - self._run - 1]:
            self._run += 1

    @property
    def is_running(self) -> bool:
        """Whether there is anything to guess."""
        return self._source is not None

    def expected(self, n: int) -> float:
        """How many of the next `n` tokens a guess would get right, on average."""
        chance, total = 1.0, 0.0
        for ahead in range(n):
            chance *= self.odds[run_class(self._run + ahead)]
            total += chance
        return total

    def guess(self, tokens: array[int], n: int) -> tuple[int, ...]:
        """The `n` tokens that come next if the text goes on as it did before, to be checked now. A period repeats."""
        assert self._source is not None
        guessed = list(tokens[self._source : self._source + n])
        period = len(tokens) - self._source
        while len(guessed) < n:
            guessed.append(guessed[len(guessed) - period])
        self._guess = _LookupDraft(len(tokens), tuple(guessed))
        return self._guess.tokens


def run_class(run: int) -> int:
    """The class of a run of `run` tokens."""
    return max(0, sum(run >= shortest for shortest in _RUNS) - 1)


def _key(tokens: array[int], end: int) -> int:
    """The n-gram before `end` as one number."""
    return tokens[end - 3] << 2 * _TOKEN_BITS | tokens[end - 2] << _TOKEN_BITS | tokens[end - 1]


class _Cost(NamedTuple):
    """Seconds of a step, and when that was measured."""

    seconds: float
    at_step: int


class StepCosts:
    """What a step of one sequence costs by its rows: measured, between two measured ones interpolated."""

    def __init__(self) -> None:
        self._known: dict[int, _Cost] = {}
        self._n_steps = 0

    def record(self, n_rows: int, seconds: float) -> None:
        self._n_steps += 1
        old = self._known.get(n_rows)
        if old is not None:
            seconds = old.seconds + _SMOOTHING * (seconds - old.seconds)
        self._known[n_rows] = _Cost(seconds, self._n_steps)

    def seconds(self, n_rows: int) -> float:
        """What such a step will take; 0 when nothing is known. A bad moment is forgotten after a while."""
        known = {n: cost.seconds for n, cost in self._known.items() if self._n_steps - cost.at_step < _FORGET_STEPS}
        if not known:
            return 0.0
        below = max((n for n in known if n <= n_rows), default=min(known))
        above = min((n for n in known if n >= n_rows), default=None)
        if above is None:
            # One more row costs a fraction of the first, as that one's weights are read anyway.
            return known[below] * (1 + (n_rows - below) / (4 * below))
        if above <= below:
            return known[above]
        share = (n_rows - below) / (above - below)
        return known[below] + share * (known[above] - known[below])


class Speculator:
    """How much is guessed: at most `max_draft` tokens, and only for a sequence that runs alone.

    A sequence's first guess is short, and longer ones follow those that came true: what a step of many rows costs at
    this depth is known only when one was computed, and whoever comes or leaves meanwhile waits for it.
    With several sequences a batch is well used already, and llama.cpp computes the rows of a longer sequence apart.
    """

    def __init__(self, max_draft: int, draft_model: DraftModel | None = None) -> None:
        self._sizes = [size for size in (_SHORTEST, 7, 15, 31, 63) if size < max_draft]
        if max_draft > 0:
            self._sizes.append(max_draft)
        self._max_draft = max_draft
        self.costs = StepCosts()
        self._draft_model = draft_model

    @property
    def is_on(self) -> bool:
        return bool(self._sizes)

    def draft(
        self, lookup: PromptLookup, trust: AcceptanceEstimator, tokens: array[int], limit: int
    ) -> tuple[int, ...]:
        """The tokens worth checking in the next step, at most `limit`; often none."""
        guess = self._look_up(lookup, tokens, limit)
        if guess or self._draft_model is None:
            return guess
        return self._draft_model.draft(trust, tokens, min(limit, self._max_draft), limit, self.costs.seconds)

    @property
    def n_dropped(self) -> int:
        """Times that what a draft model had read was of no use."""
        return 0 if self._draft_model is None else self._draft_model.n_dropped

    def _look_up(self, lookup: PromptLookup, tokens: array[int], limit: int) -> tuple[int, ...]:
        lookup.follow(tokens)
        one = self.costs.seconds(1)
        if not lookup.is_running or one == 0:
            return ()
        best, best_rate = 0, _CLEARLY / one
        limit = min(limit, lookup.longest)
        for size in self._sizes:
            n = min(size, limit)
            rate = (1 + lookup.expected(n)) / self.costs.seconds(1 + n) if n > 0 else 0.0
            if rate > best_rate:
                best, best_rate = n, rate
        return lookup.guess(tokens, best) if best else ()
