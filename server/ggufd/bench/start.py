"""`ggufd bench start`: time from a command line to a ready server, and the memory of its processes."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Annotated

import typer

from ggufd.bench.measure.client import BenchError, Client
from ggufd.bench.measure.figures import Better, Metric
from ggufd.bench.measure.local import Local, Memory, started
from ggufd.bench.measure.output import console, failing_in_one_line, say, write_json
from ggufd.bench.measure.report import Sheet
from ggufd.bench.measure.site import Figure, MeasuredServer, Site, Sizes
from ggufd.bench.measure.table import show
from ggufd.bench.measure.words import Words

NAME = "start"
PROMPT = 500
ANSWER = 32


def start(
    command: Annotated[str, typer.Argument(help="A server's command line, with {port} where its port belongs.")],
    against: Annotated[
        str | None, typer.Option(help="A second one, started in turns; ratios are the first over this one.")
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests at once before memory is read again.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Starts of each.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every sample to this file.")] = None,
) -> None:
    """Measure the time from a command line to a ready server, and its memory; of one or two in turns."""
    commands = [command] if against is None else [command, against]
    sheet = Sheet(commands)
    with failing_in_one_line():
        for repetition in range(rounds):
            for side, one in enumerate(commands):
                sheet.add(repetition, side, _measure(one, requests))
            say(f"start: {repetition + 1} of {rounds}")
    show(sheet, console())
    write_json(json_file, sheet.as_json())


def _measure(command: str, n_requests: int) -> list[Figure]:
    with started(command) as server:
        ready = Metric(NAME, "from command to ready", "time", "s", Better.LOWER)
        figures = [Figure(ready, server.ready_s), *_memory("ready", server.memory())]
        asyncio.run(_load(server, n_requests))
        return [*figures, *_memory(f"after {n_requests} requests at once", server.memory())]


async def _load(server: Local, n_requests: int) -> None:
    client = Client(server.url)
    words = Words(1.3, random.SystemRandom().random())
    try:
        await Site(MeasuredServer(client), words, Sizes()).together(
            [words.text(PROMPT) for _ in range(n_requests)], ANSWER
        )
    except BenchError as error:
        raise BenchError(f"the load before memory is read: {error}") from None


def _memory(case: str, found: Memory) -> list[Figure]:
    values = {"memory of all its processes": found.total, "memory of the largest": found.largest}
    return [
        Figure(Metric(NAME, case, quantity, "MiB", Better.LOWER), n_bytes / 2**20)
        for quantity, n_bytes in values.items()
    ]
