"""Reports as rich tables: medians with their range, ratios coloured by whether they are better."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ggufd.bench.measure.figures import Better, Comparison, Ratio, Summary
from ggufd.bench.measure.report import Findings
from ggufd.bench.measure.rows import Row

_COLOURS = {Comparison.BETTER: "green", Comparison.WORSE: "red", Comparison.EVEN: "default"}


def number(value: float) -> str:
    """Three significant digits, whole from 100 on: 0.0123, 1.23, 12.3, 1,234."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 0
    while abs(value) * 10**digits < 100 and digits < 6:
        digits += 1
    return f"{value:.{digits}f}"


def summary_cell(summary: Summary | None) -> str:
    """`median (least to greatest)`, the range only when there is one."""
    if summary is None:
        return "-"
    if summary.low == summary.high:
        return number(summary.median)
    return f"{number(summary.median)} ({number(summary.low)} to {number(summary.high)})"


def ratio_cell(ratio: Ratio | None, better: Better) -> str:
    """The ratio with its spread, and in words what it means, for terminals without colour."""
    if ratio is None:
        return "-"
    verdict = ratio.verdict(better)
    spread = "" if ratio.low == ratio.high else f" ({ratio.low:.2f} to {ratio.high:.2f})"
    word = "" if verdict is Comparison.EVEN else f" {verdict.value}"
    return f"[{_COLOURS[verdict]}]{ratio.of_medians:.2f}{spread}{word}[/]"


def table(rows: Sequence[Row], n_sides: int) -> Table:
    """Table of rows; the columns of the sides are headed by letters that the caption explains."""
    found = Table(title_justify="left", header_style="bold")
    found.add_column("scenario")
    found.add_column("case")
    found.add_column("quantity")
    found.add_column("unit")
    found.add_column("better")
    for letter in "AB"[:n_sides]:
        found.add_column(letter, justify="right")
    if n_sides == 2:
        found.add_column("A / B", justify="right")
    before = None
    for row in rows:
        if before is not None and before != row.metric.scenario:
            found.add_section()
        before = row.metric.scenario
        found.add_row(*_cells(row, n_sides))
    return found


def _cells(row: Row, n_sides: int) -> list[str]:
    metric = row.metric
    cells = [metric.scenario, metric.case, metric.quantity, metric.unit, metric.better.value]
    cells += [summary_cell(summary) for summary in row.summaries]
    if n_sides == 2:
        cells.append(ratio_cell(row.ratio, metric.better))
    return cells


def show(findings: Findings, console: Console) -> None:
    """Print the table, what its columns are, and what a reader needs to judge it."""
    console.print(table(findings.rows(), len(findings.sides)))
    for letter, side in zip("AB", findings.sides, strict=False):
        console.print(f"{letter}: {escape(side)}", highlight=False, soft_wrap=True)
    machine = findings.machine
    console.print(f"{machine['cpu']}, {machine['cores']} cores; {findings.when}", highlight=False, soft_wrap=True)
    for warning in findings.warnings:
        console.print(f"[yellow]note:[/] {escape(warning)}", highlight=False, soft_wrap=True)
