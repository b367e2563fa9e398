"""Number of compute threads of a step: the one measured as fastest for as many rows, while serving.

Compute threads wait for each other by spinning. One more helps until somebody else wants its core (the HTTP side, a
client on the same machine, another program); then every step waits for the slowest. Which number is best depends on
the model, the machine, the rows, the depth and the moment, so a few steps try each now and then, and the others use
the winner.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

_ROUNDS = 3
_TRY_STEPS = 4
"""Turns of a trial, as the load changes meanwhile, and steps of a turn; the first pays for the change."""

_HOPELESS = 1.25
"""A number is tried no more when its best step took this many times the typical one of the fastest."""

_KEEP_STEPS = 500
_MAX_KEEP_STEPS = 4000
"""Steps that use the winner of a trial: twice as many each time that the same one wins."""

_SHALLOW = 256
"""Depths up to here are one class, then each doubling is."""

_CLEARLY = 0.95
"""Fewer threads must take at most this share of the time: in doubt all are used."""


class _ThreadChoice(NamedTuple):
    """Threads of one step, whether a trial tries them, and whether its time counts there."""

    n_threads: int
    is_tried: bool = False
    counts: bool = False


@dataclass(slots=True)
class _Trial:
    """Times of steps of as many rows at about the same depth, by number of threads."""

    plan: Iterator[_ThreadChoice]
    seconds: dict[int, list[float]] = field(default_factory=dict)


class ThreadTuner:
    """Choice among `n_threads` (all that may be used), one less, and half of them."""

    def __init__(self, n_threads: int) -> None:
        self._candidates = sorted({n_threads, max(1, n_threads - 1), max(1, n_threads // 2)}, reverse=True)
        self._trials: dict[tuple[int, int], _Trial] = {}
        self._last: tuple[_Trial, _ThreadChoice] | None = None

    def choose(self, n_rows: int, *, depth: int, is_fixed: bool) -> int | None:
        """Threads for a step of `n_rows` decoding rows, the deepest after `depth` tokens; None is as configured.

        So are those of prefill and of other steps that are `is_fixed`: with many rows threads wait little for each
        other.
        """
        self._last = None
        if is_fixed or len(self._candidates) == 1:
            return None
        key = n_rows, (depth // _SHALLOW).bit_length()
        if key not in self._trials:
            self._trials[key] = trial = _Trial(iter(()))
            trial.plan = self._plan(trial)
        trial = self._trials[key]
        choice = next(trial.plan)
        self._last = (trial, choice)
        return choice.n_threads

    @property
    def tries_fewer(self) -> bool:
        """Whether the step that was chosen for last tries fewer threads, so that its time tells little of others."""
        return self._last is not None and self._last[1].is_tried and self._last[1].n_threads < self._candidates[0]

    def record(self, seconds: float) -> None:
        """Record the seconds of the step that was chosen for last, from its beginning to that of the next."""
        if self._last is not None:
            trial, choice = self._last
            if choice.counts:
                trial.seconds.setdefault(choice.n_threads, []).append(seconds)
            self._last = None

    def _plan(self, trial: _Trial) -> Iterator[_ThreadChoice]:
        """Choices of all steps: a trial of every number, then the fastest for a long while, and so on."""
        best, n_keep = 0, _KEEP_STEPS
        while True:
            yield from self._tries(trial)
            before, best = best, self._best(trial)
            n_keep = min(2 * n_keep, _MAX_KEEP_STEPS) if best == before else _KEEP_STEPS
            yield from [_ThreadChoice(best)] * n_keep

    def _tries(self, trial: _Trial) -> Iterator[_ThreadChoice]:
        """Choices of a trial: rounds of the numbers that may yet win, as long as there are two."""
        trial.seconds.clear()
        hopeful = self._candidates
        for _ in range(_ROUNDS):
            if len(hopeful) < 2:
                return
            for n in hopeful:
                yield _ThreadChoice(n, is_tried=True)
                yield from [_ThreadChoice(n, is_tried=True, counts=True)] * (_TRY_STEPS - 1)
            limit_s = _HOPELESS * min(_typical(trial.seconds.get(n)) for n in hopeful)
            hopeful = [n for n in hopeful if min(trial.seconds.get(n, ()), default=0.0) <= limit_s]

    def _best(self, trial: _Trial) -> int:
        best, *fewer = self._candidates
        for n in fewer:
            if _typical(trial.seconds.get(n)) < _CLEARLY * _typical(trial.seconds.get(best)):
                best = n
        return best


def _typical(seconds: list[float] | None) -> float:
    return statistics.median(seconds) if seconds else math.inf
