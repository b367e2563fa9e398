"""How many compute threads a step gets: the number that has been fastest for as many rows, measured while serving.

Compute threads wait for each other by spinning. One more helps until somebody else wants its core (the HTTP side, a
client on the same machine, another program); then every step waits for the slowest. Which number is best depends on the
model, the machine, the rows and the moment, so a few steps try each now and then, and the others use the winner.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

_TRY_STEPS = 8
"""Steps that try one number in a row; the first of them still pays for the change and is not counted."""

_KEEP_STEPS = 500
"""Steps after a trial that use its winner."""


@dataclass(slots=True)
class _Trial:
    """What steps of about as many rows have taken; `plan` yields the number of threads of each step."""

    plan: Iterator[int]
    seconds: dict[int, list[float]] = field(default_factory=dict)


class ThreadTuner:
    """Chooses among `n_threads` (all that may be used), one less, and half of them."""

    def __init__(self, n_threads: int) -> None:
        self._candidates = sorted({n_threads, max(1, n_threads - 1), max(1, n_threads // 2)}, reverse=True)
        self._trials: dict[int, _Trial] = {}
        self._last: tuple[_Trial, int] | None = None

    def choose(self, n_rows: int, *, is_prefill: bool) -> int | None:
        """Threads for a step of `n_rows` decoding rows; None is as configured: for prefill, which waits little."""
        self._last = None
        if is_prefill or len(self._candidates) == 1:
            return None
        bucket = n_rows.bit_length()
        if bucket not in self._trials:
            self._trials[bucket] = trial = _Trial(iter(()))
            trial.plan = self._plan(trial)
        trial = self._trials[bucket]
        n = next(trial.plan)
        self._last = (trial, n)
        return n

    def record(self, seconds: float) -> None:
        """The step that was chosen for last took `seconds`, from its beginning to that of the next."""
        if self._last is not None:
            trial, n = self._last
            trial.seconds.setdefault(n, []).append(seconds)
            self._last = None

    def _plan(self, trial: _Trial) -> Iterator[int]:
        """Try every number, then use the fastest for a long while, and so on."""
        while True:
            trial.seconds.clear()
            for n in self._candidates:
                yield from [n] * _TRY_STEPS
            best = min(self._candidates, key=lambda n: _typical(trial.seconds.get(n, [])))
            yield from [best] * _KEEP_STEPS


def _typical(seconds: list[float]) -> float:
    return statistics.median(seconds[1:]) if len(seconds) > 1 else float("inf")
