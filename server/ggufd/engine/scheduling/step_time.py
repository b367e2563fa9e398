"""Measured time of steps: of decoding, and of prefill a token."""

from __future__ import annotations

from collections import deque

MIN_CHUNK = 16
"""Least tokens of a prefill chunk: with fewer a prompt would starve behind decoding sequences on a slow machine."""

_SMOOTHING = 0.3

_RECENT = 16
"""Steps among which the quickest is the pace of decoding: those that try fewer threads are slow."""


class StepTime:
    """Measured cost of steps: seconds of a step that only decodes, and seconds a token of prefill.

    `alone_s` are those of the decode of one deterministic sequence, which has a batch of its own.
    """

    def __init__(self) -> None:
        self.decode_s = 0.0
        self.alone_s = 0.0
        self.prefill_s_per_token = 0.0
        self._decodes_s: deque[float] = deque(maxlen=_RECENT)

    def record(self, seconds: float, n_decode: int, n_prefill: int) -> None:
        if n_prefill == 0:
            self.decode_s = _smooth(self.decode_s, seconds)
            self._decodes_s.append(seconds)
        elif n_prefill >= MIN_CHUNK:
            decode_s = self.decode_s if n_decode else 0.0
            per_token = max(seconds - decode_s, 0.1 * seconds) / n_prefill
            self.prefill_s_per_token = _smooth(self.prefill_s_per_token, per_token)

    def record_alone(self, seconds: float) -> None:
        """Record one token of a deterministic sequence."""
        self.alone_s = _smooth(self.alone_s, seconds)

    @property
    def pace_s(self) -> float:
        """Seconds of an undisturbed step that only decodes: the quickest of the last ones."""
        return min(self._decodes_s, default=0.0)


def _smooth(old: float, new: float) -> float:
    return new if old == 0 else old + _SMOOTHING * (new - old)
