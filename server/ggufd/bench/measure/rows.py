"""Rows of a table made of all samples: medians, and ratios where two sides were measured in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ggufd.bench.measure.figures import Metric, Ratio, Summary
from ggufd.bench.measure.site import Figure


@dataclass(frozen=True, slots=True)
class Sample:
    """A figure of one repetition, on the server, or whatever is compared, with this index."""

    repetition: int
    server: int
    figure: Figure


@dataclass(frozen=True, slots=True)
class Row:
    """A metric over all repetitions: a summary for each server that has one, and their ratio if there are two."""

    metric: Metric
    summaries: tuple[Summary | None, ...]
    ratio: Ratio | None


def rows_of(records: Sequence[Sample], n_sides: int) -> list[Row]:
    """One row a metric, in the order of measuring; with two sides their ratio."""
    return [_row(metric, records, n_sides) for metric in dict.fromkeys(record.figure.metric for record in records)]


def _row(metric: Metric, records: Sequence[Sample], n_sides: int) -> Row:
    values: list[dict[int, float]] = [{} for _ in range(n_sides)]
    for record in records:
        if record.figure.metric == metric:
            values[record.server][record.repetition] = record.figure.value
    ratio = None
    if n_sides == 2:
        # Only repetitions that both have; a run cut short leaves one without its pair.
        both = [(values[0][r], values[1][r]) for r in values[0] if r in values[1]]
        ratio = Ratio.of([a for a, _ in both], [b for _, b in both]) if both else None
    return Row(metric, tuple(Summary.of(list(found.values())) if found else None for found in values), ratio)


def results(records: Sequence[Sample], n_sides: int) -> list[dict[str, Any]]:
    """The rows in plain values, each with its raw samples."""
    return [_result(row, records) for row in rows_of(records, n_sides)]


def _result(row: Row, records: Sequence[Sample]) -> dict[str, Any]:
    metric, ratio = row.metric, row.ratio
    samples = [record for record in records if record.figure.metric == metric]
    return {
        "scenario": metric.scenario,
        "case": metric.case,
        "quantity": metric.quantity,
        "unit": metric.unit,
        "better": metric.better.value,
        "medians": [summary.median if summary else None for summary in row.summaries],
        "ratio": {"of_medians": ratio.of_medians, "low": ratio.low, "high": ratio.high} if ratio else None,
        "samples": [
            {
                "server": record.server,
                "repetition": record.repetition,
                "value": record.figure.value,
                "raw": list(record.figure.raw),
            }
            for record in samples
        ],
    }
