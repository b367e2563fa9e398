"""Statistics of repeated measurements: medians, and ratios of two servers with their spread. Pure functions."""

from __future__ import annotations

import enum
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


class Better(enum.Enum):
    """Direction in which a quantity improves."""

    HIGHER = "higher"
    LOWER = "lower"


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table: a quantity of a case of a scenario."""

    scenario: str
    case: str
    quantity: str
    unit: str
    better: Better


@dataclass(frozen=True, slots=True)
class Summary:
    """Median, least and greatest of the repetitions."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


class Comparison(enum.Enum):
    """Comparison of the first server with the second: a spread that contains 1 is inconclusive."""

    BETTER = "better"
    WORSE = "worse"
    EVEN = "even"


@dataclass(frozen=True, slots=True)
class Ratio:
    """First server over second: of the medians, and the least and greatest over repetitions taken in turn."""

    of_medians: float
    low: float
    high: float

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float]) -> Ratio | None:
        """Repetition i of both was measured one after the other. None when nothing can be divided."""
        pairs = [a / b for a, b in zip(first, second, strict=False) if b > 0]
        if not pairs or statistics.median(second) <= 0:
            return None
        return cls(statistics.median(first) / statistics.median(second), min(pairs), max(pairs))

    def verdict(self, better: Better) -> Comparison:
        """Better or worse only when every repetition says so."""
        if self.low <= 1 <= self.high:
            return Comparison.EVEN
        return Comparison.BETTER if (self.low > 1) == (better is Better.HIGHER) else Comparison.WORSE


def longest_gap(times: Sequence[float], start: float, end: float) -> float:
    """The longest time without an arrival in `start` to `end`, edges included: silence up to `end` counts.

    An arrival before `start` opens the first gap, so that a pause that began earlier is seen whole.
    """
    before = [moment for moment in times if moment <= start]
    after = [moment for moment in times if moment > end]
    inside = [moment for moment in times if start < moment <= end]
    points = [before[-1] if before else start, *inside, after[0] if after else end]
    return max(late - early for early, late in itertools.pairwise(points))


def throughput(streams: Sequence[tuple[Sequence[float], float]]) -> float | None:
    """Tokens a second of streams that ran together; each is `(arrivals of pieces, tokens in a piece)`.

    Counted while all of them run: from the last one's first piece to the first one's last piece. A server that does
    not run them together has no such time, or a short one that says little: when less than half of the pieces fall
    into it, it is all pieces over the whole time. None when all came at once.
    """
    start = max(times[0] for times, _ in streams)
    end = min(times[-1] for times, _ in streams)
    total = sum(len(times) for times, _ in streams)
    inside = sum(1 for times, _ in streams for moment in times if start < moment <= end)
    if inside < total / 2:
        start = min(times[0] for times, _ in streams)
        end = max(times[-1] for times, _ in streams)
    counted = sum(sum(start < moment <= end for moment in times) * weight for times, weight in streams)
    return counted / (end - start) if end > start else None


def percentile(values: Sequence[float], share: float) -> float:
    """Percentile: the least value that so large a share of all values does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def common_prefix(first: Sequence[object], second: Sequence[object]) -> int:
    """Number of elements that two sequences share from their beginning."""
    shared = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        shared += 1
    return shared
