"""Command `bench curves`: the curves, measured on servers that it starts, and their pictures."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ggufd.bench.curves import chats, context, gaps, streams
from ggufd.bench.curves.curve import Curve
from ggufd.bench.curves.ground import QUICK, Extent, Ground, ggufd
from ggufd.bench.measure.client import BenchError
from ggufd.bench.measure.output import failing_in_one_line, say, write_json
from ggufd.bench.measure.report import Sheet

CURVES: dict[str, Callable[[Ground], Awaitable[None]]] = {
    "streams": streams.measure,
    "context": context.measure,
    "chats": chats.measure,
    "gaps": gaps.measure,
}


def curves(
    model: Annotated[str, typer.Option("--model", "-m", help="The model, as `ggufd serve` takes it.")] = "",
    long_model: Annotated[str, typer.Option(help="A model of 32k tokens or more, for context; else --model.")] = "",
    threads: Annotated[int, typer.Option("--threads", "-t", min=0, help="Compute threads; 0: as `serve` would.")] = 0,
    only: Annotated[list[str] | None, typer.Option(help=f"This curve (repeatable): {', '.join(CURVES)}.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two points of each, to see that it works.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every sample to this file.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Draw the curves into this folder.")] = None,
    drawn_from: Annotated[
        Path | None, typer.Option("--from", help="Draw what an earlier run wrote with --json; measure nothing.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Draw the same texts as another run; random by default.")] = None,
) -> None:
    """Measure how the server grows: with streams, context and kept chats; and what `max_gap_ms` trades."""
    with failing_in_one_line():
        if drawn_from is not None:
            _draw(_read(drawn_from), plots or Path())
            return
        names = _known(only or list(CURVES))
        ground = Ground(
            ggufd(model, threads),
            ggufd(long_model or model, threads),
            QUICK if quick else Extent(),
            random.SystemRandom().randrange(2**32) if seed is None else seed,
            say,
        )
        sheet = Sheet([])
        interrupted = _measure(ground, names, sheet)
        write_json(json_file, _as_json(ground, sheet))
        if plots is not None:
            _draw(ground.curves, plots)
        for warning in sheet.warnings:
            say(f"note: {warning}")
    if interrupted:
        raise typer.Exit(130)
    if not any(curve.points for curve in ground.curves):
        raise typer.Exit(1)


def _known(names: list[str]) -> list[str]:
    for name in names:
        if name not in CURVES:
            raise BenchError(f"no curve is named {name!r}: expected one of {', '.join(CURVES)}")
    return names


def _measure(ground: Ground, names: list[str], sheet: Sheet) -> bool:
    """Measure all of them, or up to Ctrl-C: True then. What fails is noted, and the others go on."""
    start_s = time.perf_counter()
    try:
        asyncio.run(_run(ground, names, sheet))
    except KeyboardInterrupt:
        sheet.warnings.append("interrupted: this is what there was until then")
        return True
    finally:
        say(f"{time.perf_counter() - start_s:.0f} s in all")
    return False


async def _run(ground: Ground, names: list[str], sheet: Sheet) -> None:
    for name, measure in CURVES.items():
        if name in names:
            try:
                await measure(ground)
            except BenchError as error:
                sheet.warnings.append(f"{name}: failed: {error}")


def _as_json(ground: Ground, sheet: Sheet) -> dict[str, Any]:
    circumstances = {key: value for key, value in sheet.as_json().items() if key not in ("sides", "results")}
    return {**circumstances, "seed": ground.seed, "curves": [curve.as_json() for curve in ground.curves]}


def _read(path: Path) -> list[Curve]:
    try:
        return [Curve.of_json(one) for one in json.loads(path.read_text(encoding="utf-8"))["curves"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise BenchError(f"{path} is no file that `ggufd bench curves --json` wrote") from None


def _draw(found: list[Curve], folder: Path) -> None:
    try:
        from ggufd.bench.curves.plots import draw
    except ModuleNotFoundError as error:
        raise BenchError(f"plots need {error.name}: pip install 'ggufd[bench]'") from None
    try:
        for path in draw(found, folder):
            say(f"drew {path}")
    except OSError as error:
        raise BenchError(f"{folder} cannot be written: {error.strerror}") from None
