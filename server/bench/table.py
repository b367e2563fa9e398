"""A report as a rich table: medians with their range, and the ratio coloured by which way the quantity improves."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from server.bench.figures import Better, Ratio, Summary, Verdict
from server.bench.report import Report, Row

_COLOURS = {Verdict.BETTER: "green", Verdict.WORSE: "red", Verdict.EVEN: "default"}


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
    word = "" if verdict is Verdict.EVEN else f" {verdict.value}"
    return f"[{_COLOURS[verdict]}]{ratio.of_medians:.2f}{spread}{word}[/]"


def table(report: Report) -> Table:
    """All rows of the report; the servers' columns are headed by letters that the caption explains."""
    found = Table(title_justify="left", header_style="bold")
    found.add_column("scenario")
    found.add_column("case")
    found.add_column("quantity")
    found.add_column("unit")
    found.add_column("better")
    for letter, _ in zip("AB", report.servers, strict=False):
        found.add_column(letter, justify="right")
    if len(report.servers) == 2:
        found.add_column("A / B", justify="right")
    before = None
    for row in report.rows():
        if before is not None and before != row.metric.scenario:
            found.add_section()
        before = row.metric.scenario
        found.add_row(*_cells(row, len(report.servers)))
    return found


def _cells(row: Row, n_servers: int) -> list[str]:
    metric = row.metric
    cells = [metric.scenario, metric.case, metric.quantity, metric.unit, metric.better.value]
    cells += [summary_cell(summary) for summary in row.summaries]
    if n_servers == 2:
        cells.append(ratio_cell(row.ratio, metric.better))
    return cells


def show(report: Report, console: Console) -> None:
    """The table, and what a reader needs to judge it."""
    console.print(table(report))
    for letter, server in zip("AB", report.servers, strict=False):
        known = [server.client.url, server.model, server.build]
        if server.n_slots is not None:
            known.append(f"{server.n_slots} slots")
        if server.n_ctx is not None:
            known.append(f"{server.n_ctx:,} tokens of context a slot")
        console.print(f"{letter}: {escape(', '.join(part for part in known if part))}", highlight=False, soft_wrap=True)
    machine = report.machine
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores; {report.date}; seed {report.seed}; "
        f"this client took {report.client_share:.1%} of a core",
        highlight=False,
        soft_wrap=True,
    )
    for warning in report.warnings:
        console.print(f"[yellow]note:[/] {escape(warning)}", highlight=False, soft_wrap=True)
