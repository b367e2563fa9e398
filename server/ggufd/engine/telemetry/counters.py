"""Counters and histograms of the engine, cheap enough for every step and every token."""

from __future__ import annotations

from bisect import bisect_left

from ggufd.engine.messages.reports import Spread
from ggufd.engine.sequence.sequence import SequenceState

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
_ERRORS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


class Histogram:
    """Histogram: how many values were at most each of `bounds`, ascending, and how many were above."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    @property
    def spread(self) -> Spread:
        return Spread(self._bounds, tuple(self._counts), self._sum)


class Counters:
    """Totals since the start; `step_s` is of the last step, `decode_s` and `step_gap_s` of its last batch, in seconds.

    `steps` counts batches: a step has several where one failed, or where its chunks cannot share one.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.computed_tokens = 0
        self.prefill_tokens = 0
        self.cached_tokens = 0
        self.generated_tokens = 0
        self.preemptions = 0
        self.busy_slots = 0
        self.longest = 0
        self.drafted_tokens = 0
        self.accepted_tokens = 0
        self.rejected_s = 0.0
        self.model_drafted_tokens = 0
        self.model_accepted_tokens = 0
        self.step_s = 0.0
        self.decode_s = 0.0
        self.step_gap_s = 0.0
        self.steps_spread = Histogram(_SECONDS)
        self.step_gaps = Histogram(_SECONDS)
        self.token_gaps = Histogram(_SECONDS)
        self.batches = Histogram(_ROWS)
        self.cost_errors = Histogram(_ERRORS)
        self._ended_s: float | None = None
        self._has_rested = True

    def begin_step(self) -> None:
        """Begin a step, whose batches are counted together in `step_s`."""
        self.step_s = 0.0

    def begin(self, now_s: float) -> None:
        """Count the gap before a batch that is computed now."""
        if self._ended_s is not None:
            self.step_gap_s = now_s - self._ended_s
            if not self._has_rested:
                self.step_gaps.observe(self.step_gap_s)
        self._has_rested = False

    def leave_out(self, seconds: float) -> None:
        """Take seconds of other work out of the gap between two steps."""
        if self._ended_s is not None:
            self._ended_s += seconds

    def end(self, now_s: float, seconds: float, *, n_rows: int, n_sequences: int, n_prefill: int = 0) -> None:
        """Count a batch of `n_rows`, `n_prefill` of them of prompts."""
        self._ended_s = now_s
        self.step_s += seconds
        self.decode_s = seconds
        self.steps += 1
        self.computed_tokens += n_rows
        self.prefill_tokens += n_prefill
        self.busy_slots += n_sequences
        self.steps_spread.observe(seconds)
        self.batches.observe(n_rows)

    def note_expected(self, seconds: float) -> None:
        """Count what was expected of the last batch beside what it took; nothing where nothing was known."""
        if seconds > 0 and self.decode_s > 0:
            self.cost_errors.observe(abs(seconds / self.decode_s - 1))

    def rest(self) -> None:
        """Leave the time until the next step out of the gaps: nothing runs."""
        self._has_rested = True

    def note_token(self, sequence: SequenceState) -> None:
        """Count a sampled token and its inter-token latency (ITL); tokens of one step come at one time.

        The pauses of background work are felt by nobody.
        """
        self.generated_tokens += 1
        now_s = self._ended_s or 0.0
        if sequence.last_token_s and not sequence.is_background:
            self.token_gaps.observe(now_s - sequence.last_token_s)
        sequence.last_token_s = now_s

    def note_end(self, sequence: SequenceState) -> None:
        """Count a sequence that has ended."""
        self.longest = max(self.longest, len(sequence.tokens))
        self.drafted_tokens += sequence.n_drafted
        self.accepted_tokens += sequence.n_accepted
        sequence.acceptance.settle(sequence.tokens)
        self.model_drafted_tokens += sequence.acceptance.n_drafted
        self.model_accepted_tokens += sequence.acceptance.n_accepted
