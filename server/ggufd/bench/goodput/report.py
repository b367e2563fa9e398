"""Findings of a search for goodput: a row for each rate, for tables, progress lines and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from ggufd.bench.goodput.objective import KEPT_SHARE, Objective, RateResult, RateRow, outcome_json
from ggufd.bench.measure.figures import Better, Metric
from ggufd.bench.measure.report import BenchReport
from ggufd.bench.measure.site import Figure
from ggufd.bench.measure.table import number

NAME = "goodput"
_CASE = f"{KEPT_SHARE:.0%} of requests keep the objective"


@dataclass(slots=True)
class GoodputReport(BenchReport):
    """Findings of a run. `basis` says where the objective comes from; `results` grow while the run goes on."""

    objective: Objective | None = None
    basis: str = ""
    results: list[RateResult] = field(default_factory=list)

    @property
    def objective_line(self) -> str:
        """The objective in words; empty before there is one."""
        if self.objective is None:
            return ""
        ttft_ms, itl_ms = 1000 * self.objective.ttft_s, 1000 * self.objective.itl_p95_s
        return f"objective: TTFT up to {number(ttft_ms)} ms, p95 of ITL up to {number(itl_ms)} ms ({self.basis})"

    def rate_rows(self) -> Iterator[tuple[RateResult, RateRow]]:
        """All rates: by round, then rate, then server."""
        if self.objective is not None:
            for one in sorted(self.results, key=lambda one: (one.repetition, one.rate, one.server)):
                yield one, RateRow.of(one, self.objective)

    def add_goodput(self, repetition: int, server: int, rate: float) -> None:
        """Take the highest rate that was kept, and the least share of the light user at any rate."""
        figures = [Figure(Metric(NAME, _CASE, "highest rate", "requests/s", Better.HIGHER), rate)]
        shares = [
            row.light_share
            for result, row in self.rate_rows()
            if (result.repetition, result.server) == (repetition, server) and row.light_share is not None
        ]
        if shares:
            metric = Metric(NAME, "the light user, at any rate", "least share kept", "%", Better.HIGHER)
            figures.append(Figure(metric, 100 * min(shares), tuple(100 * share for share in shares)))
        self.add(repetition, server, figures)

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"kept_share": KEPT_SHARE, "objective": None, "rates": []}
        if self.objective is not None:
            found["objective"] = dataclasses.asdict(self.objective) | {"basis": self.basis}
            found["rates"] = [_rate_json(result, row, self.objective) for result, row in self.rate_rows()]
        return BenchReport.as_json(self) | found


def _rate_json(result: RateResult, row: RateRow, objective: Objective) -> dict[str, Any]:
    requests = {
        name: [outcome_json(outcome, result.start, objective) for outcome in outcomes]
        for name, outcomes in (("requests", result.outcomes), ("light_requests", result.light))
    }
    return {"server": result.server, "repetition": result.repetition} | dataclasses.asdict(row) | requests


def rate_line(letter: str, row: RateRow, n: int) -> str:
    """One rate on one server, for the progress."""
    light = "" if row.light_share is None else f"; light user {row.light_share:.0%}"
    errors = "" if not row.errors else f"; {row.errors} errors"
    return (
        f"{letter}, {number(row.rate)} requests/s: {row.kept_share:.0%} of {n} kept it, "
        f"TTFT p90 {_seconds(row.ttft_p90_s)} s, ITL p95 {_seconds(row.itl_p95_s)} s{light}{errors}"
    )


def rates_table(report: GoodputReport) -> Table:
    """A row for each rate on each server."""
    has_light = any(result.light for result in report.results)
    found = Table(title_justify="left", header_style="bold")
    found.add_column("server")
    heads = ["requests/s", "answers/s", "kept", "kept/s", "TTFT p50, s", "TTFT p90, s", "ITL p95, s", "errors"]
    for head in heads + ["light user kept"] * has_light:
        found.add_column(head, justify="right")
    before = None
    for result, row in report.rate_rows():
        if before is not None and before != result.repetition:
            found.add_section()
        before = result.repetition
        found.add_row("AB"[result.server], *_cells(row), *([_share(row.light_share)] * has_light))
    return found


def _cells(row: RateRow) -> list[str]:
    return [
        number(row.rate),
        number(row.attained),
        _share(row.kept_share),
        number(row.kept_a_second),
        _seconds(row.ttft_p50_s),
        _seconds(row.ttft_p90_s),
        _seconds(row.itl_p95_s),
        str(row.errors),
    ]


def _seconds(value: float | None) -> str:
    return "-" if value is None else number(value)


def _share(share: float | None) -> str:
    if share is None:
        return "-"
    return f"[{'green' if share >= KEPT_SHARE else 'red'}]{share:.0%}[/]"
