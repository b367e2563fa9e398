"""Shortest remaining work first, within a bound, among sequences of one account that wait for a slot or for prefill.

A chat's next turn, whose prompt is nearly all cached, costs little and is felt most; behind long prompts it would wait
for all of them. So what is much shorter may go first, and everybody has patience: the seconds of prefill that first
come, first served puts before it when it comes. The work of whoever goes first though it came later is taken off the
patience of those it delays, and must not be more than what is left. So what later ones put before a sequence never
takes longer than what earlier ones did: nobody waits for more than twice the work of first come, first served. The
bound is one of work as it was estimated: answers that are longer than expected delay all alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

from ggufd.engine.costs.step_costs import StepCosts
from ggufd.engine.sequence.sequence import SequenceState

_MUCH_SHORTER = 0.5
"""Share of the first one's work that another one's may be at most to go before it."""


class ShortestFirst:
    """Choice of the next of a line, whose order is first come, first served.

    The work of a sequence is the prefill left of it, and its share of the decode steps of `n_slots` for as many tokens
    as `expected_tokens` says.
    """

    def __init__(self, costs: StepCosts, expected_tokens: Callable[[SequenceState], float], n_slots: int) -> None:
        self._costs = costs
        self._expected_tokens = expected_tokens
        self._n_slots = n_slots

    def meet(self, one: SequenceState, ahead: Iterable[SequenceState], n_cached: int) -> None:
        """Give a sequence that has come its patience; `n_cached` tokens of its prompt need no prefill."""
        one.n_matched = n_cached
        one.patience_s = sum(self._prefill_s(other) for other in ahead)

    def pick(self, line: Sequence[SequenceState]) -> SequenceState:
        """The sequence to serve next: the first of the line, or the shortest that all before it have patience for."""
        best = line[0]
        if len(line) == 1 or not best.patience_s:
            return best
        most_s = _MUCH_SHORTER * self.work_s(best)
        left_s = math.inf
        for before, one in itertools.pairwise(line):
            left_s = min(left_s, before.patience_s or 0.0)
            if left_s <= 0 or one.priority > before.priority:
                break
            work_s = self.work_s(one)
            if work_s < most_s and work_s <= left_s:
                best, most_s = one, work_s
        return best

    def charge(self, line: Iterable[SequenceState], taken: SequenceState, work_s: float) -> None:
        """Take work that is done for a sequence off the patience of those before it in the line."""
        for one in itertools.takewhile(lambda other: other is not taken, line):
            if one.patience_s:
                one.patience_s = max(0.0, one.patience_s - work_s)

    def work_s(self, one: SequenceState) -> float:
        """Seconds of the machine's time that a sequence takes until its end."""
        n_left = max(0.0, self._expected_tokens(one) - one.n_generated)
        return self._prefill_s(one) + n_left * self._costs.decode_s / self._n_slots

    def _prefill_s(self, one: SequenceState) -> float:
        is_new = one.slot is None and not one.is_preempted
        n_tokens = one.n_prompt - one.n_matched if is_new else one.n_prompt_uncomputed
        return self._costs.prefill_s(n_tokens, one.n_prompt - n_tokens)
