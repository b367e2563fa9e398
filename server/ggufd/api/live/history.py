"""History of ten minutes: a row a second of numbers about all requests, while there are any or somebody looks.

Nothing is computed for a second in which nothing ran and nobody looked: it has no row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ggufd.engine.messages.reports import LiveState, Spread

SECONDS = 600
"""Length of the history."""

_FIRSTS_S = 30.0
"""The percentiles of a row are of the first tokens in so many seconds before it."""


class HistoryRow(NamedTuple):
    """One second. `time` is of `time.monotonic`; `read` and `written` tokens a second, `batch` mean rows of a step.

    None is what is not known: the engine was busy with one long step, whose tokens count in a later row. Percentiles
    are seconds, None where nothing was measured: of the first tokens of the last half minute, and of the gaps between
    tokens, the latter as exact as the histogram's buckets.
    """

    time: float
    read: float | None
    written: float | None
    waiting: int
    running: int
    batch: float | None
    first_p50: float | None
    first_p95: float | None
    gap_p50: float | None
    gap_p95: float | None
    refused: int


class LiveHistory:
    """The rows of the last ten minutes, numbered from 0 on."""

    def __init__(self) -> None:
        self._rows: deque[HistoryRow] = deque(maxlen=SECONDS)
        self._firsts: deque[tuple[float, float]] = deque(maxlen=1000)
        self.n_rows = 0

    def note_first_token(self, at_s: float, took_s: float) -> None:
        """A request had its first token `took_s` after its arrival, at `at_s`."""
        self._firsts.append((at_s, took_s))

    def add(
        self, now_s: float, seconds: float, before: LiveState | None, after: LiveState | None, counts: Sequence[int]
    ) -> None:
        """Add the row of a second that ends at `now_s`, from the engine's last two states, which are `seconds` apart.

        `counts` are the requests that wait, run and were refused. Where both are one state, the engine told none;
        without two states of one engine nothing was computed as far as is known.
        """
        waiting, running, refused = counts
        first = self._percentiles(now_s)
        row = HistoryRow(round(now_s, 1), 0.0, 0.0, waiting, running, None, *first, None, None, refused)
        if before is not None and before is after:
            row = row._replace(read=None, written=None)
        elif before is not None and after is not None and after.stats.steps >= before.stats.steps:
            row = _with_engine(row, seconds, before, after)
        self._rows.append(row)
        self.n_rows += 1

    def _percentiles(self, now_s: float) -> tuple[float | None, float | None]:
        recent = sorted(took_s for at_s, took_s in self._firsts if now_s - at_s <= _FIRSTS_S)
        if not recent:
            return None, None
        return round(recent[len(recent) // 2], 4), round(recent[min(len(recent) - 1, int(0.95 * len(recent)))], 4)

    def since(self, number: int, now_s: float) -> Iterator[HistoryRow]:
        """Rows from that number on, as far as they are there and not older than the history is long."""
        n_wanted = min(len(self._rows), self.n_rows - number)
        skipped = len(self._rows) - n_wanted
        return (row for at, row in enumerate(self._rows) if at >= skipped and now_s - row.time <= SECONDS)


def _with_engine(row: HistoryRow, seconds: float, before: LiveState, after: LiveState) -> HistoryRow:
    old, new = before.stats, after.stats
    n_steps = new.steps - old.steps
    n_read = after.prefill_tokens - before.prefill_tokens + new.embedded_tokens - old.embedded_tokens
    gaps = _difference(old.token_gap_seconds, new.token_gap_seconds)
    return row._replace(
        read=round(n_read / seconds, 1),
        written=round((new.generated_tokens - old.generated_tokens) / seconds, 1),
        batch=round((new.computed_tokens - old.computed_tokens) / n_steps, 2) if n_steps else None,
        gap_p50=percentile(gaps, 0.5),
        gap_p95=percentile(gaps, 0.95),
    )


def _difference(old: Spread, new: Spread) -> Spread:
    if old.bounds != new.bounds:
        return new
    counts = tuple(after - before for before, after in zip(old.counts, new.counts, strict=True))
    return Spread(new.bounds, counts, new.total - old.total)


def percentile(spread: Spread, share: float) -> float | None:
    """Value below which a share of a histogram lies, linear within its bucket; None of an empty one.

    Of the last bucket, which has no end, it is the beginning.
    """
    wanted = share * sum(spread.counts)
    if not wanted:
        return None
    below, low = 0, 0.0
    for bound, count in zip(spread.bounds, spread.counts, strict=False):
        if below + count >= wanted:
            return round(low + (bound - low) * (wanted - below) / count, 5)
        below, low = below + count, bound
    return low
