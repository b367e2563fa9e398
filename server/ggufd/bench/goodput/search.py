"""Search for the highest rate that is kept, one measurement after the other. Knows no server."""

from __future__ import annotations

import math

MOST_FALLS = 4
"""How often the rate is lowered where not even the first one is kept."""


class RateSearch:
    """Rates to measure: rising by a factor until one is not kept, then between the two, on a logarithmic scale.

    `rate` is the next one, None at the end; `tell` says whether it was kept.
    """

    def __init__(self, first: float, factor: float, n_bisections: int, most: float) -> None:
        self.rate: float | None = min(first, most)
        self.kept = 0.0
        self.missed = math.inf
        self._factor = factor
        self._bisections_left = n_bisections
        self._falls_left = MOST_FALLS
        self._most = most

    def tell(self, *, is_kept: bool) -> None:
        """Take the result of `rate`, and go on to the next."""
        assert self.rate is not None, "the search is over"
        if is_kept:
            self.kept = self.rate
        else:
            self.missed = self.rate
        self.rate = self._next()

    def _next(self) -> float | None:
        if self.missed == math.inf:
            return min(self.kept * self._factor, self._most) if self.kept < self._most else None
        if self.kept == 0.0:
            self._falls_left -= 1
            return self.missed / self._factor if self._falls_left >= 0 else None
        self._bisections_left -= 1
        return math.sqrt(self.kept * self.missed) if self._bisections_left >= 0 else None
