"""`ggufd bench URL`: command-line flags, a run, a table and JSON."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Annotated, Any

import typer

from ggufd.bench.measure.client import BenchError
from ggufd.bench.measure.output import console, failing_in_one_line, run_until_interrupted, say, write_json
from ggufd.bench.measure.report import BenchReport
from ggufd.bench.measure.site import QUICK, Sizes
from ggufd.bench.measure.table import show
from ggufd.bench.run import Options, run
from ggufd.bench.scenarios import SCENARIOS

_NAMES = ", ".join(SCENARIOS)


def bench(
    url: Annotated[str, typer.Argument(help="The server to measure, such as http://127.0.0.1:5001.")],
    against: Annotated[
        str | None, typer.Option(help="A second server, measured in turn; ratios are the first over this one.")
    ] = None,
    scenario: Annotated[list[str] | None, typer.Option(help=f"Measure this only (repeatable): {_NAMES}.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Repetitions of each case; 3 by default.")] = None,
    streams: Annotated[str | None, typer.Option(help="Streams of the decode cases, such as 1,4,8,16.")] = None,
    depth: Annotated[int | None, typer.Option(min=16, help="Known history of the deep cases, in tokens.")] = None,
    tokens: Annotated[
        int | None, typer.Option(min=8, help="Answers of the decode, deep and old-chats cases, in tokens.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=1, help="How long a chat beside jobs is watched.")] = None,
    chat_context: Annotated[
        int | None, typer.Option(min=300, help="Tokens a chat's client keeps its history under.")
    ] = None,
    pause: Annotated[float | None, typer.Option(min=0, help="Seconds of reading before each turn of a chat.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Everything once and small, to see that it works.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every sample to this file.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="GGUFD_BENCH_API_KEY", help="Key to send, to both servers.")
    ] = None,
    other_api_key: Annotated[
        str | None, typer.Option(envvar="GGUFD_BENCH_OTHER_API_KEY", help="A second key, for fairness and background.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model to ask the first server for; its first by default.")] = None,
    max_slots: Annotated[
        int | None, typer.Option(min=1, help="Slots of a server that does not tell how many it has.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Draw the same texts as another run; random by default.")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for one answer.")] = 300.0,
) -> None:
    """Measure an OpenAI-compatible server, or two in turn."""
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    with failing_in_one_line():
        options = Options(
            url=url,
            seed=seed,
            against=against,
            scenarios=tuple(scenario or ()),
            sizes=sizes(quick, rounds, streams, depth, tokens, seconds, chat_context, pause),
            api_key=api_key,
            other_api_key=other_api_key,
            model=model,
            max_slots=max_slots,
            timeout_s=timeout,
        )
        report = BenchReport(seed)
        say(f"seed {seed}")
        interrupted = run_until_interrupted(run(options, report, say))
    _finish(report, json_file, interrupted=interrupted)


def sizes(
    quick: bool,
    rounds: int | None = None,
    streams: str | None = None,
    depth: int | None = None,
    tokens: int | None = None,
    seconds: float | None = None,
    chat_context: int | None = None,
    pause: float | None = None,
) -> Sizes:
    """The usual sizes, or the quick ones, with those replaced that were given. Raises BenchError for bad streams."""
    given: dict[str, Any] = {
        "rounds": rounds,
        "streams": None if streams is None else _numbers(streams),
        "depth": depth,
        "decode_tokens": tokens,
        "seconds": seconds,
        "chat_context": chat_context,
        "pause": pause,
    }
    found = QUICK if quick else Sizes()
    return dataclasses.replace(found, **{name: value for name, value in given.items() if value is not None})


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise BenchError(f"--streams {text!r}: expected positive numbers with commas between, such as 1,4,8,16")
    return tuple(int(part) for part in parts)


def _finish(report: BenchReport, json_file: Path | None, *, interrupted: bool) -> None:
    if interrupted:
        report.warnings.append("interrupted: this is what there was until then")
    show(report, console())
    write_json(json_file, report.as_json())
    if interrupted:
        raise typer.Exit(130)
