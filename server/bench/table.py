"""Reports as rich tables: medians with their range, ratios coloured by whether they are better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from server.bench.figures import Better, Comparison, Ratio, Summary
from server.bench.report import BenchReport
from server.bench.rows import Row, rows_of
from server.bench.sheet import Sheet

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


def show(report: BenchReport, console: Console) -> None:
    """Print the table of a report, and what a reader needs to judge it."""
    console.print(table(report.rows(), len(report.servers)))
    for letter, server in zip("AB", report.servers, strict=False):
        known = [server.client.url, server.model, server.build]
        if server.n_slots is not None:
            known.append(f"{server.n_slots} slots")
        if server.n_ctx is not None:
            known.append(f"{server.n_ctx:,} tokens of context a slot")
        console.print(f"{letter}: {escape(', '.join(part for part in known if part))}", highlight=False, soft_wrap=True)
    taken = f"seed {report.seed}; this client took {report.client_share:.1%} of a core"
    _show_circumstances(console, report.machine, f"{report.date}; {taken}", report.warnings)


def show_sheet(sheet: Sheet, console: Console) -> None:
    """Print the table of a sheet, what its columns are, and what a reader needs to judge it."""
    console.print(table(rows_of(sheet.records, len(sheet.sides)), len(sheet.sides)))
    for letter, side in zip("AB", sheet.sides, strict=False):
        console.print(f"{letter}: {escape(side)}", highlight=False, soft_wrap=True)
    _show_circumstances(console, sheet.machine, sheet.date, sheet.warnings)


def _show_circumstances(console: Console, machine: Mapping[str, str | int], when: str, warnings: Sequence[str]) -> None:
    console.print(f"{machine['cpu']}, {machine['cores']} cores; {when}", highlight=False, soft_wrap=True)
    for warning in warnings:
        console.print(f"[yellow]note:[/] {escape(warning)}", highlight=False, soft_wrap=True)
