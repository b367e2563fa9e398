"""Where the time of the last steps went: for `GET /debug/steps`, and for whoever makes the next one faster.

A lap costs two looks at the clock, a tenth of a microsecond: cheap enough to be always on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ggufd.engine.messages.reports import StepRecord

_MAX_STEPS = 2048


class StepTrace:
    """The last `max_steps` steps; times in seconds of `clock`. Of the step under way the sums are added to directly."""

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
        """A step begins."""
        self._keep()
        self._start_s = self._planned_s = self._clock()
        self.draft_s = self.decode_s = self.sample_s = self.detokenize_s = 0.0
        self.n_sequences = self.n_decode = self.n_prefill = self.n_draft = 0

    def sent(self, seconds: float) -> None:
        """What the last step said is on its way to the API process."""
        self._send_s = seconds

    def planned(self) -> None:
        """It is settled what this step computes."""
        self._planned_s = self._clock()

    def end(self) -> None:
        """The step is over, and computed something."""
        self._ended_s = self._clock()

    def _keep(self) -> None:
        """Make a record of the step that ended, now that it is known what sending took."""
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
            )
        )
        self._ended_s, self._send_s = None, 0.0
