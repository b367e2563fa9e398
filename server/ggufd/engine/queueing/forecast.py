"""Forecast of queue time and time to first token (TTFT) of waiting requests, from recent measurements.

A slot becomes free when its sequence ends; the next in the expected order takes the first that does. The length of an
answer is not known before it ends: with a limit it is estimated by the share of their limits that the latest answers
used, else by their mean length. Before anything was measured all estimates are zero, so that no request is refused for
a number without ground.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from ggufd.engine.costs.step_costs import StepCosts
from ggufd.engine.messages.events import Turn
from ggufd.engine.sequence.sequence import SequenceState

_MEMORY = 10
"""Number of answers that a mean is of, about."""

_LONGER = 1.25
"""Expected length of an answer that is longer than the mean, by its length so far."""

_MAX_STRETCH = 3.0
"""Bound on the stretch of one answer: a longer delay need not come again."""


_USUAL_PROMPT = 500


class _RunningMean:
    """Moving mean of the latest values; `value` is the first estimate before there are any."""

    def __init__(self, value: float) -> None:
        self.value = value
        self._n = 0

    def add(self, value: float) -> None:
        self._n = min(self._n + 1, _MEMORY)
        self.value += (value - self.value) / self._n


class Forecast:
    """Estimates from `costs`, which are measured, and from answers that have ended: their length, and the time of a
    token beside that of a step. That is less where drafts were accepted, and more where steps had prefill.
    """

    def __init__(self, costs: StepCosts) -> None:
        self._costs = costs
        self._length = _RunningMean(0.0)
        self._share = _RunningMean(1.0)
        self._stretch = _RunningMean(1.0)

    def note_answer(self, sequence: SequenceState, tokens_per_s: float) -> None:
        """Learn from an answer that has ended, and its rate."""
        if tokens_per_s > 0 and self._costs.decode_s > 0:
            self._stretch.add(min(_MAX_STRETCH, 1 / (tokens_per_s * self._costs.decode_s)))
        self._length.add(sequence.n_generated)
        limit = sequence.request.max_tokens
        if limit is not None and not sequence.request.sampling.ignore_eos:
            self._share.add(sequence.n_generated / limit)

    def expected_tokens(self, sequence: SequenceState) -> float:
        """Expected length of the whole answer of a sequence, in tokens."""
        limit = sequence.request.max_tokens
        longer = _LONGER * sequence.n_generated
        if limit is None:
            return max(self._length.value, longer)
        if sequence.request.sampling.ignore_eos:
            return limit
        return min(limit, max(limit * self._share.value, longer))

    def prefill_s(self, n_tokens: int) -> float:
        """Seconds of a prefill of so many tokens, the first sampled token included."""
        return self._costs.prefill_s(n_tokens) + self._costs.decode_s

    def left_s(self, sequence: SequenceState) -> float:
        """Expected seconds until a sequence ends, once it has a slot."""
        n_left = max(0.0, self.expected_tokens(sequence) - sequence.n_generated)
        n_unread = sequence.n_prompt_uncomputed
        token_s = self._stretch.value * self._costs.decode_s
        return self._costs.prefill_s(n_unread, sequence.n_prompt - n_unread) + n_left * token_s

    def turns(self, order: Iterable[SequenceState], running: Iterable[SequenceState], n_free: int) -> dict[int, Turn]:
        """Turn of every request of which nothing runs yet, by its id; `order` is that of service."""
        free_s = self._free_s(running, n_free)
        turns: dict[int, Turn] = {}
        for sequence in order:
            wait_s = self._take(free_s, sequence)
            if sequence.is_first:
                turns[sequence.request.request_id] = Turn(len(turns) + 1, wait_s)
        return turns

    def next_wait_s(self, order: Iterable[SequenceState], running: Iterable[SequenceState], n_free: int) -> float:
        """Expected wait of one more sequence behind all of `order`."""
        free_s = self._free_s(running, n_free)
        for sequence in order:
            self._take(free_s, sequence)
        return free_s[0]

    @property
    def prefill_tok_s(self) -> float:
        """Tokens computed in a second of a prompt of 500; 0 before anything was measured."""
        seconds = self._costs.prefill_s(_USUAL_PROMPT)
        return _USUAL_PROMPT / seconds if seconds > 0 else 0.0

    def _free_s(self, running: Iterable[SequenceState], n_free: int) -> list[float]:
        """Heap of the seconds after which each slot becomes free."""
        free_s = [0.0] * n_free + [self.left_s(sequence) for sequence in running]
        heapq.heapify(free_s)
        return free_s

    def _take(self, free_s: list[float], sequence: SequenceState) -> float:
        """Give the slot that becomes free first to a sequence; its wait."""
        wait_s = heapq.heappop(free_s)
        heapq.heappush(free_s, wait_s + self.left_s(sequence))
        return wait_s
