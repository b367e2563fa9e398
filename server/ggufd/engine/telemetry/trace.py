"""Trace of the last steps, by phase: for `GET /debug/steps`.

A phase costs two readings of the clock, a tenth of a microsecond: cheap enough to be always on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ggufd.engine.messages.reports import StepRecord

_MAX_STEPS = 2048


class StepTrace:
    """The last `max_steps` steps; times in seconds of `clock`. The attributes are sums of the step under way."""

    def __init__(self, clock: Callable[[], float], max_steps: int = _MAX_STEPS) -> None:
        self._clock = clock
        self._records: deque[StepRecord] = deque(maxlen=max_steps)
        self._ended_s: float | None = None
        self._send_s = 0.0
        self.begin()

    @property
    def records(self) -> tuple[StepRecord, ...]:
        self._keep()
        return tuple(self._records)

    def begin(self) -> None:
        """Begin a step."""
        self._keep()
        self._start_s = self._planned_s = self._clock()
        self.expected_s = self.rejected_s = self.draft_s = self.decode_s = self.sample_s = self.detokenize_s = 0.0
        self.n_sequences = self.n_decode = self.n_prefill = self.n_draft = 0

    def sent(self, seconds: float) -> None:
        """Note the time that sending the events of the last step took."""
        self._send_s = seconds

    def planned(self) -> None:
        """End of the planning phase."""
        self._planned_s = self._clock()

    def end(self) -> None:
        """End of a step that computed something."""
        self._ended_s = self._clock()

    def _keep(self) -> None:
        """Make a record of the step that ended, now that the time of sending is known."""
        if self._ended_s is None:
            return
        self._records.append(
            StepRecord(
                start_s=self._start_s,
                seconds=self._ended_s - self._start_s,
                plan_s=self._planned_s - self._start_s - self.draft_s,
                decode_s=self.decode_s,
                sample_s=self.sample_s,
                detokenize_s=self.detokenize_s,
                n_sequences=self.n_sequences,
                n_decode=self.n_decode,
                n_prefill=self.n_prefill,
                n_draft=self.n_draft,
                draft_s=self.draft_s,
                send_s=self._send_s,
                expected_s=self.expected_s,
                rejected_s=self.rejected_s,
            )
        )
        self._ended_s, self._send_s = None, 0.0
