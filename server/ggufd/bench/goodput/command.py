"""`ggufd bench goodput`: command-line flags, a run, tables and JSON."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import typer

from ggufd.bench.goodput.load import QUICK_MIX, LoadMix
from ggufd.bench.goodput.report import GoodputReport, rates_table
from ggufd.bench.goodput.run import GoodputOptions, GoodputRun
from ggufd.bench.goodput.unloaded import ITL_TIMES, TTFT_TIMES
from ggufd.bench.measure.output import console, failing_in_one_line, run_until_interrupted, say, say_for_now, write_json
from ggufd.bench.measure.table import show

_QUICK_REQUESTS = 10
_QUICK_BISECTIONS = 1


def goodput(
    url: Annotated[str, typer.Argument(help="The server to measure, such as http://127.0.0.1:5001.")],
    against: Annotated[
        str | None, typer.Option(help="A second server, measured in turns; ratios are the first over this one.")
    ] = None,
    ttft_ms: Annotated[
        float | None,
        typer.Option(min=0.001, help=f"Objective for TTFT; by default {TTFT_TIMES} times the faster server's alone."),
    ] = None,
    itl_p95_ms: Annotated[
        float | None,
        typer.Option(min=0.001, help=f"Objective for the p95 of ITL of a request; by default {ITL_TIMES} times."),
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests at each rate; 100 by default.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Searches on each server; 3 by default.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="First rate; by default a low one, measured.")] = None,
    factor: Annotated[float, typer.Option(min=1.01, help="What the rate rises by until it is not kept.")] = 1.5,
    bisections: Annotated[int | None, typer.Option(min=0, help="Rates tried below that one; 3 by default.")] = None,
    max_rate: Annotated[float, typer.Option(min=0.001, help="Highest rate, in requests a second.")] = 100.0,
    quick: Annotated[bool, typer.Option("--quick", help="Few and small requests, to see that it works.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every request to this file.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", "--heavy-key", envvar="GGUFD_BENCH_API_KEY", help="Key of the load, for both."),
    ] = None,
    light_key: Annotated[
        str | None,
        typer.Option(envvar="GGUFD_BENCH_OTHER_API_KEY", help="A second key: a user with few chat turns beside it."),
    ] = None,
    light_rate: Annotated[float, typer.Option(min=0.001, help="Requests a second of that user, at any load.")] = 0.2,
    model: Annotated[str | None, typer.Option(help="Model to ask the first server for; its first by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draw the same load as another run; random by default.")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for one answer.")] = 300.0,
) -> None:
    """Find the highest rate of requests at which 90 % keep an objective for TTFT and ITL; of two servers in turns."""
    options = GoodputOptions(
        url=url,
        seed=random.SystemRandom().randrange(2**32) if seed is None else seed,
        against=against,
        api_key=api_key,
        other_api_key=light_key,
        model=model,
        timeout_s=timeout,
        ttft_s=None if ttft_ms is None else ttft_ms / 1000,
        itl_p95_s=None if itl_p95_ms is None else itl_p95_ms / 1000,
        n_requests=requests or (_QUICK_REQUESTS if quick else 100),
        rounds=rounds or (1 if quick else 3),
        first_rate=rate,
        factor=factor,
        bisections=(_QUICK_BISECTIONS if quick else 3) if bisections is None else bisections,
        most_rate=max_rate,
        light_rate=light_rate,
        mix=QUICK_MIX if quick else LoadMix(),
    )
    report = GoodputReport(options.seed)
    say(f"seed {options.seed}")
    with failing_in_one_line():
        interrupted = run_until_interrupted(GoodputRun(options, report, say, say_for_now).run())
    _finish(report, json_file, interrupted=interrupted)


def _finish(report: GoodputReport, json_file: Path | None, *, interrupted: bool) -> None:
    if interrupted:
        report.warnings.append("interrupted: this is what there was until then")
    console().print(rates_table(report))
    console().print(report.objective_line, highlight=False, soft_wrap=True)
    show(report, console())
    write_json(json_file, report.as_json())
    if interrupted:
        raise typer.Exit(130)
