"""Prompt lookup speculative decoding (n-gram speculation): where a text repeats itself, its earlier place is the draft.

`PromptLookup` follows the tokens of one sequence: where its last n-gram stood before, what followed it is the draft.
A draft changes no output: every token is sampled from its own row, and the first one that differs from the draft ends
it. Rows of images, which are numbers below zero, are never drafted and end a run. Knows no samplers.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

import numpy as np

_N_GRAM = 3
"""Tokens of the n-gram that is looked up."""

_TOKEN_BITS = 21
_MAX_INDEXED = 8192
"""Tokens of a prompt that one call indexes: about a millisecond."""

_RUNS = (3, 5, 9, 17)
"""Least lengths of the classes of runs, in tokens that agree already: long runs break more seldom."""

_FIRST_ODDS = (0.4, 0.6, 0.8, 0.92)
_LEARNING = 0.2

SHORTEST = 3
"""Most tokens of a sequence's first draft, of which nothing is known yet: with the token before them four rows."""


class _LookupDraft(NamedTuple):
    """Draft tokens behind the first `position`."""

    position: int
    tokens: tuple[int, ...]


class PromptLookup:
    """Index of a sequence's n-grams, and the run along an earlier place that its text is in.

    `odds[c]` is the acceptance rate of run class `c`, a moving average; learned from every token, drafted or not.
    `longest` bounds a draft: one that was accepted whole lets the next step have twice as many rows, one that was not
    takes a quarter off. Not more: runs end, and the odds tell how good the next one is.
    """

    def __init__(self, n_prompt: int) -> None:
        self.odds = list(_FIRST_ODDS)
        self.longest = SHORTEST
        self._draft = _LookupDraft(0, ())
        self._n_prompt = n_prompt
        self._index: dict[int, int] = {}
        self._n_seen = 0
        self._source: int | None = None
        self._run = 0

    def follow(self, tokens: array[int]) -> None:
        """Index the tokens that are new."""
        self._settle(tokens)
        if self._n_seen < self._n_prompt:
            self._index_prompt(tokens)
        while self._n_prompt <= self._n_seen < len(tokens):
            self._note(tokens, self._n_seen)
            self._n_seen += 1

    def _settle(self, tokens: array[int]) -> None:
        """Learn from the last draft how long the next one may be."""
        (position, drafted), self._draft = self._draft, _LookupDraft(0, ())
        n = len(drafted)
        came = tuple(tokens[position : position + n])
        if came != drafted[: len(came)]:
            self.longest = max(SHORTEST, self.longest * 3 // 4)
        elif n and len(came) == n:
            self.longest = max(self.longest, 2 * n + 1)

    def rewind(self, n_tokens: int) -> None:
        """Forget all but the first `n_tokens`; the next draft is looked up anew."""
        self._draft = _LookupDraft(0, ())
        self._n_prompt = min(self._n_prompt, n_tokens)
        if n_tokens < self._n_seen:
            self._n_seen, self._source = n_tokens, None

    def restart(self, n_tokens: int) -> None:
        """Index another text of `n_tokens` so far; the acceptance rates stay."""
        self._draft = _LookupDraft(0, ())
        self._index.clear()
        self._n_prompt, self._n_seen, self._source = n_tokens, 0, None

    def _index_prompt(self, tokens: array[int]) -> None:
        """Index the ends of the prompt's n-grams, of equal ones the last; at its end look up the last one."""
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
        """Index the token at `position`: the run goes on with it, or another one is looked up."""
        if self._source is not None and tokens[self._source] < 0:
            self._source = None
        if self._source is not None:
            is_accepted = tokens[self._source] == tokens[position]
            kind = run_class(self._run)
            self.odds[kind] += _LEARNING * (is_accepted - self.odds[kind])
            self._source = self._source + 1 if is_accepted else None
            self._run += 1
        if position + 1 >= _N_GRAM:
            if self._source is None:
                self._find(tokens, position + 1)
            self._index[_key(tokens, position + 1)] = position + 1

    def _find(self, tokens: array[int], end: int) -> None:
        """Look up the n-gram before `end`, and since when both places agree."""
        source = self._index.get(_key(tokens, end)) if end >= _N_GRAM else None
        # After a rewind the index may name tokens that are gone.
        if source is None or source >= end or tokens[source - _N_GRAM : source] != tokens[end - _N_GRAM : end]:
            return
        if min(tokens[end - _N_GRAM : end]) < 0:
            return
        self._source, self._run = source, _N_GRAM
        while self._run < min(source, _RUNS[-1]) and 0 <= tokens[source - self._run - 1] == tokens[end - self._run - 1]:
            self._run += 1

    @property
    def is_running(self) -> bool:
        """Whether the text is in a run, so that there is something to draft."""
        return self._source is not None

    def expected(self, n: int) -> float:
        """Expected number of accepted tokens of a draft of `n`."""
        chance, total = 1.0, 0.0
        for ahead in range(n):
            chance *= self.odds[run_class(self._run + ahead)]
            total += chance
        return total

    def draft(self, tokens: array[int], n: int) -> tuple[int, ...]:
        """The `n` tokens that followed the earlier place, to be verified now. A period repeats.

        An image ends it.
        """
        assert self._source is not None
        drafted = list(tokens[self._source : self._source + n])
        period = len(tokens) - self._source
        while len(drafted) < n:
            drafted.append(drafted[len(drafted) - period])
        rows = [place for place, token in enumerate(drafted) if token < 0]
        del drafted[rows[0] if rows else n :]
        self._draft = _LookupDraft(len(tokens), tuple(drafted))
        return self._draft.tokens


def run_class(run: int) -> int:
    """Class of a run of `run` tokens."""
    return max(0, sum(run >= shortest for shortest in _RUNS) - 1)


def _key(tokens: array[int], end: int) -> int:
    """N-gram before `end` as one number."""
    return tokens[end - 3] << 2 * _TOKEN_BITS | tokens[end - 2] << _TOKEN_BITS | tokens[end - 1]
