"""Steps with drafts: what they would take, which of them are worth it, and which may be made.

A step with drafts is worth it where it promises clearly more tokens a second than one without.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ggufd.engine.speculation.acceptance import AcceptanceEstimator
from ggufd.engine.speculation.draft_budget import DraftBudget
from ggufd.engine.speculation.prompt_lookup import PromptLookup

_CLEARLY = 1.1
"""A draft must promise this many times the tokens a second without one: what is promised is an estimate."""

_SLOWED = 1.25
"""By so much a step may become longer for drafts of some, while others get no more than a token of it."""

DraftedStepSeconds = Callable[[Sequence[int]], float]
"""Seconds of a step by the number of draft tokens of each sequence that may have some; 0 when not known."""


class Candidate(NamedTuple):
    """A sequence that may have a draft of at most `limit` tokens, of which at most `n_left` more may come.

    `acceptance` is None where a draft model cannot read its text.
    """

    lookup: PromptLookup
    tokens: array[int]
    limit: int
    n_left: int
    acceptance: AcceptanceEstimator | None


class DraftedStep:
    """A step in which `n_running` sequences decode, and `n_candidates` of them may have a draft.

    `lengths` are the numbers of draft tokens, one for each candidate; times are in seconds, `plain_s` that of the step
    without drafts.
    """

    def __init__(self, seconds: DraftedStepSeconds, n_candidates: int, n_running: int, budget: DraftBudget) -> None:
        self.seconds = seconds
        self.none = (0,) * n_candidates
        self.plain_s = seconds(self.none)
        self.n_running = n_running
        self._budget = budget

    def rate(self, lengths: Sequence[int], n_gained: float, draft_s: float = 0.0) -> float:
        """Tokens a second, where `n_gained` draft tokens are accepted and drafting takes `draft_s`."""
        return (self.n_running + n_gained) / (self.seconds(lengths) + draft_s)

    def least_rate(self) -> float:
        """Tokens a second from which on drafts are worth it."""
        return _CLEARLY * self.n_running / self.plain_s

    def may_have(self, lengths: Sequence[int]) -> bool:
        """Whether the step may take as long as it does with these drafts, for those that get none too."""
        took = self.seconds(lengths) / self.plain_s
        is_for_all = sum(map(bool, lengths)) == self.n_running
        return self._budget.allows(took) and (is_for_all or took <= _SLOWED)
