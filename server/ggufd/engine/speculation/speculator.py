"""How much is drafted: the draft tokens that are worth a row each in the next step, of one sequence or of a few.

Which steps are worth it is told by `engine.speculation.drafted_step`, from the acceptance rate of each sequence and by
what a step of that shape costs. A sequence's first draft is short, and longer ones follow accepted ones: new requests
and aborts wait for a step of many rows. What rejected tokens may cost is bounded by `engine.speculation.draft_budget`.

Drafts of several sequences are as long as each other where they can be: llama.cpp computes rows of neighbouring slots
in one pass as far as they have as many.
"""

from __future__ import annotations

from collections.abc import Sequence

from ggufd.engine.speculation.draft_budget import DraftBudget
from ggufd.engine.speculation.draft_model import DraftModel
from ggufd.engine.speculation.drafted_step import Candidate, DraftedStep, DraftedStepSeconds
from ggufd.engine.speculation.prompt_lookup import SHORTEST


class Speculator:
    """Choice of drafts of at most `max_draft` tokens: by prompt lookup, and else by the draft model."""

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
        self, candidates: Sequence[Candidate], step_s: DraftedStepSeconds, *, n_running: int
    ) -> list[tuple[int, ...]]:
        """Drafts of the candidates, often none, for a step in which `n_running` sequences decode."""
        for one in candidates:
            one.lookup.follow(one.tokens)
        step = DraftedStep(step_s, len(candidates), n_running, self._budget)
        if step.plain_s == 0:
            return [() for _ in candidates]
        self._budget.earn()
        drafts = self._look_up(candidates, step)
        if any(drafts) or self._draft_model is None:
            return drafts
        bounded = [one._replace(limit=min(one.limit, self._max_draft)) for one in candidates]
        return self._draft_model.draft(bounded, step)

    def _look_up(self, candidates: Sequence[Candidate], step: DraftedStep) -> list[tuple[int, ...]]:
        """Drafts by prompt lookup, of the size that promises most."""
        best, best_rate = [0 for _ in candidates], step.least_rate()
        for size in self._sizes:
            lengths = [_length(one, size) for one in candidates]
            if not any(lengths):
                break
            n_gained = sum(one.lookup.expected(n) for one, n in zip(candidates, lengths, strict=True))
            rate = step.rate(lengths, n_gained)
            if rate > best_rate and step.may_have(lengths):
                best, best_rate = lengths, rate
        return [one.lookup.draft(one.tokens, n) if n else () for one, n in zip(candidates, best, strict=True)]

    def settle(self, took: float, needed: float, worth: float) -> None:
        """Account for a step whose drafts were verified: see `DraftBudget.settle`."""
        self._budget.settle(took, needed, worth)


def _length(one: Candidate, size: int) -> int:
    """Tokens of a draft of about `size`; 0 where there is nothing to draft."""
    return max(0, min(size, one.limit, one.lookup.longest)) if one.lookup.is_running else 0
