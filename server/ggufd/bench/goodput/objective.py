"""Objective of a request, what became of one, and what many of them come to. Pure arithmetic.

As in DistServe, a rate counts as served when so large a share of its requests keeps the objective, and goodput is the
highest such rate; requests a second that keep it are what vLLM's benchmark prints under that name.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ggufd.bench.goodput.load import RequestKind
from ggufd.bench.measure.client import TimedAnswer
from ggufd.bench.measure.figures import percentile

KEPT_SHARE = 0.9
"""Share of a rate's requests that has to keep the objective."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request that was due at `due`, a time of `time.perf_counter`: an answer, or an error.

    TTFT counts from when it was due, not from when the client came to send it.
    """

    kind: RequestKind
    due: float
    answer: TimedAnswer | None = None
    error: str = ""

    @property
    def ttft_s(self) -> float | None:
        """Seconds to the first piece of text; None where there is none."""
        return None if self.answer is None else self.answer.times[0] - self.due

    @property
    def seconds(self) -> float | None:
        """Seconds to the last piece of text."""
        return None if self.answer is None else self.answer.times[-1] - self.due

    @property
    def gaps_s(self) -> list[float]:
        """Times between pieces of text; an answer of one piece has none."""
        times = () if self.answer is None else self.answer.times
        return [late - early for early, late in itertools.pairwise(times)]

    @property
    def itl_p95_s(self) -> float | None:
        """95th percentile of the gaps; None where there are none."""
        gaps = self.gaps_s
        return percentile(gaps, 0.95) if gaps else None


@dataclass(frozen=True, slots=True)
class Objective:
    """Longest TTFT of a request, and longest 95th percentile of its ITL, in seconds."""

    ttft_s: float
    itl_p95_s: float

    def is_kept_by(self, outcome: Outcome) -> bool:
        """Whether both are kept. An error keeps nothing; an answer without gaps keeps the second."""
        if outcome.ttft_s is None:
            return False
        return outcome.ttft_s <= self.ttft_s and (outcome.itl_p95_s or 0.0) <= self.itl_p95_s

    def share_kept(self, outcomes: Sequence[Outcome]) -> float | None:
        """Share of the requests that keep it; None of no requests."""
        return sum(map(self.is_kept_by, outcomes)) / len(outcomes) if outcomes else None


@dataclass(frozen=True, slots=True)
class RateResult:
    """All requests of one rate on one server. `start` is when the load began; `light` are those of a second user."""

    repetition: int
    server: int
    rate: float
    start: float
    outcomes: Sequence[Outcome]
    light: Sequence[Outcome] = ()

    @property
    def errors(self) -> list[str]:
        """What was said of failed requests, of both users."""
        return [outcome.error for outcome in (*self.outcomes, *self.light) if outcome.error]


@dataclass(frozen=True, slots=True)
class RateRow:
    """Figures of a rate on one server. Percentiles are of the requests that were answered; None where none was."""

    rate: float
    attained: float
    kept_share: float
    kept_a_second: float
    ttft_p50_s: float | None
    ttft_p90_s: float | None
    itl_p95_s: float | None
    errors: int
    light_share: float | None

    @classmethod
    def of(cls, result: RateResult, objective: Objective) -> RateRow:
        """Rates are over the time from the load's start to the last piece of text."""
        ends = [outcome.answer.times[-1] for outcome in result.outcomes if outcome.answer is not None]
        seconds = max(ends) - result.start if ends else math.inf
        share = objective.share_kept(result.outcomes) or 0.0
        waits = [wait for outcome in result.outcomes if (wait := outcome.ttft_s) is not None]
        return cls(
            rate=result.rate,
            attained=len(ends) / seconds,
            kept_share=share,
            kept_a_second=share * len(result.outcomes) / seconds,
            ttft_p50_s=_percentile(waits, 0.5),
            ttft_p90_s=_percentile(waits, 0.9),
            itl_p95_s=_percentile([gap for outcome in result.outcomes for gap in outcome.gaps_s], 0.95),
            errors=len(result.errors),
            light_share=objective.share_kept(result.light),
        )

    @property
    def is_kept(self) -> bool:
        """Whether the rate counts as served."""
        return self.kept_share >= KEPT_SHARE


def _percentile(values: Sequence[float], share: float) -> float | None:
    return percentile(values, share) if values else None


def outcome_json(outcome: Outcome, start: float, objective: Objective) -> dict[str, Any]:
    """A request in plain values; `due_s` is seconds after the load's start."""
    return {
        "kind": outcome.kind.value,
        "due_s": outcome.due - start,
        "ttft_s": outcome.ttft_s,
        "itl_p95_s": outcome.itl_p95_s,
        "seconds": outcome.seconds,
        "prompt_tokens": outcome.answer.prompt_tokens if outcome.answer else None,
        "cached_tokens": outcome.answer.cached_tokens if outcome.answer else None,
        "tokens": outcome.answer.tokens if outcome.answer else None,
        "kept": objective.is_kept_by(outcome),
        "error": outcome.error or None,
    }
