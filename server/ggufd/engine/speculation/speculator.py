"""How much is drafted: the draft tokens that are worth a row each in the next step, of one sequence or of a few.

A step with drafts is worth it where it promises clearly more tokens a second than one without: by the acceptance rate
of each sequence, and by what a step of that shape costs. A sequence's first draft is short, and longer ones follow
accepted ones: new requests and aborts wait for a step of many rows. What rejected tokens may cost is bounded: see
`engine.speculation.draft_budget`.

Drafts of several sequences are as long as each other where they can be: llama.cpp computes rows of neighbouring slots
in one pass as far as they have as many. A draft model drafts for a lone sequence only, as it keeps one.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ggufd.engine.speculation.draft_budget import DraftBudget
from ggufd.engine.speculation.draft_model import AcceptanceEstimator, DraftModel, StepSeconds
from ggufd.engine.speculation.prompt_lookup import SHORTEST, PromptLookup

_CLEARLY = 1.1
"""A draft must promise this many times the tokens a second without one: what is promised is an estimate."""

_SLOWED = 1.25
"""By so much a step may become longer for drafts of some, while others get no more than a token of it."""

DraftedStepSeconds = Callable[[Sequence[int]], float]
"""Seconds of a step by the number of draft tokens of each sequence that may have some; 0 when not known."""


class Candidate(NamedTuple):
    """A sequence that may have a draft of at most `limit` tokens."""

    lookup: PromptLookup
    tokens: array[int]
    limit: int


class Speculator:
    """Choice of drafts of at most `max_draft` tokens."""

    def __init__(self, max_draft: int, draft_model: DraftModel | None = None) -> None:
        self._sizes = [size for size in (SHORTEST, 7, 15, 31, 63) if size < max_draft]
        if max_draft > 0:
            self._sizes.append(max_draft)
        self._max_draft = max_draft
        self._budget = DraftBudget()
        self._draft_model = draft_model

    @property
    def is_on(self) -> bool:
        return bool(self._sizes)

    @property
    def n_dropped(self) -> int:
        """Times that the draft model dropped its state."""
        return 0 if self._draft_model is None else self._draft_model.n_dropped

    def draft(
        self, candidate: Candidate, acceptance: AcceptanceEstimator, step_s: StepSeconds, *, has_model: bool = True
    ) -> tuple[int, ...]:
        """Draft of a sequence that runs alone, often none.

        The draft model is asked only where `has_model` says that it can read all of the tokens.
        """
        (draft,) = self.draft_together([candidate], lambda lengths: step_s(1 + lengths[0]), n_running=1)
        if draft or self._draft_model is None or not has_model:
            return draft
        limit = min(candidate.limit, self._max_draft)
        return self._draft_model.draft(acceptance, candidate.tokens, limit, candidate.limit, step_s)

    def draft_together(
        self, candidates: Sequence[Candidate], step_s: DraftedStepSeconds, *, n_running: int
    ) -> list[tuple[int, ...]]:
        """Drafts of the candidates, often none, for a step in which `n_running` sequences decode."""
        for one in candidates:
            one.lookup.follow(one.tokens)
        none = [0] * len(candidates)
        plain_s = step_s(none)
        if plain_s == 0:
            return [() for _ in candidates]
        self._account(candidates, step_s, plain_s, n_running)
        best, best_rate = none, _CLEARLY * n_running / plain_s
        for size in self._sizes:
            lengths = [_length(one, size) for one in candidates]
            if not any(lengths):
                break
            took_s = step_s(lengths)
            n_gained = sum(one.lookup.expected(n) for one, n in zip(candidates, lengths, strict=True))
            rate = (n_running + n_gained) / took_s
            if rate > best_rate and self._may_take(took_s / plain_s, is_for_all=sum(map(bool, lengths)) == n_running):
                best, best_rate = lengths, rate
        return [one.lookup.draft(one.tokens, n) if n else () for one, n in zip(candidates, best, strict=True)]

    def _may_take(self, took: float, *, is_for_all: bool) -> bool:
        """Whether a step may take so many times the time of one without drafts."""
        return self._budget.allows(took) and (is_for_all or took <= _SLOWED)

    def _account(
        self, candidates: Sequence[Candidate], step_s: DraftedStepSeconds, plain_s: float, n_running: int
    ) -> None:
        """Add the last step to the budget, and what became of its drafts."""
        outcomes = [one.lookup.take_outcome() for one in candidates]
        drafted, accepted = [one.n_drafted for one in outcomes], [one.n_accepted for one in outcomes]
        self._budget.earn()
        if any(drafted):
            worth = 1 + sum(accepted) / n_running
            self._budget.settle(step_s(drafted) / plain_s, step_s(accepted) / plain_s, worth)


def _length(one: Candidate, size: int) -> int:
    """Tokens of a draft of about `size`; 0 where there is nothing to draft."""
    return max(0, min(size, one.limit, one.lookup.longest)) if one.lookup.is_running else 0
