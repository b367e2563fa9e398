"""`ggufd bench chunks`: CPU time a streamed chunk of the HTTP process, beside that of an empty app.

Only for a server of this machine whose computing is done in another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import sys
from pathlib import Path
from typing import Annotated

import typer

from ggufd.bench.measure.client import BenchError, Client
from ggufd.bench.measure.discovery import discover
from ggufd.bench.measure.figures import Better, Metric
from ggufd.bench.measure.local import Local, listening, started
from ggufd.bench.measure.output import console, failing_in_one_line, say, write_json
from ggufd.bench.measure.report import Sheet
from ggufd.bench.measure.site import Figure, MeasuredServer, Site, Sizes
from ggufd.bench.measure.table import show
from ggufd.bench.measure.words import Words

NAME = "chunks"
PROMPT = 24
EMPTY = "an empty sse-starlette app that sends as many streams a chunk at the same pace"


def chunks(
    url: Annotated[str, typer.Argument(help="A server of this machine, such as http://127.0.0.1:8080.")],
    streams: Annotated[int, typer.Option(min=1, help="Streams at once.")] = 16,
    tokens: Annotated[int, typer.Option(min=8, help="Tokens of each.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions, of both in turns.")] = 3,
    api_key: Annotated[
        str | None, typer.Option(envvar="GGUFD_BENCH_API_KEY", help="Key to send to the server.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every sample to this file.")] = None,
) -> None:
    """Measure the CPU time a chunk of the process that speaks HTTP, in turns with an empty sse-starlette app."""
    with failing_in_one_line():
        server = listening(url)
        sheet = Sheet([f"process {server.pid} of {server.url}", EMPTY])
        asyncio.run(_measure(server, Client(server.url, api_key=api_key), (streams, tokens), rounds, sheet))
    show(sheet, console())
    write_json(json_file, sheet.as_json())


async def _measure(local: Local, client: Client, size: tuple[int, int], rounds: int, sheet: Sheet) -> None:
    server = await discover(client)
    if server.n_slots is not None and server.n_slots < size[0]:
        raise BenchError(f"{client.url} has {server.n_slots} slots: give as many --streams at most")
    _, step_s = await _run(local, server, size)  # a warm-up, and the pace of the other side
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-m", "ggufd.bench.empty_app", "{port}", f"{step_s:.6f}"]
        empty = stack.enter_context(started(command))
        other = MeasuredServer(Client(empty.url))
        await _run(empty, other, size)
        for repetition in range(rounds):
            for side, (one, known) in enumerate(((local, server), (empty, other))):
                cpu_s, step_s = await _run(one, known, size)
                sheet.add(repetition, side, _figures(size[0], cpu_s, step_s))
            say(f"chunks: {repetition + 1} of {rounds}")


async def _run(local: Local, server: MeasuredServer, size: tuple[int, int]) -> tuple[float, float]:
    """CPU seconds a chunk, with the requests' own; and the seconds between two chunks of a stream."""
    n_streams, n_tokens = size
    words = Words(1.3, random.SystemRandom().random())
    before_s = local.cpu_s()
    prompts = [words.text(PROMPT) for _ in range(n_streams)]
    answers = await Site(server, words, Sizes()).together(prompts, n_tokens)
    cpu_s = local.cpu_s() - before_s
    # Not the median of the gaps: two chunks that were sent together have none.
    gaps = [(answer.times[-1] - answer.times[0]) / max(1, len(answer.times) - 1) for answer in answers]
    return cpu_s / sum(len(answer.times) for answer in answers), statistics.median(gaps)


def _figures(n_streams: int, cpu_s: float, step_s: float) -> list[Figure]:
    case = f"{n_streams} streams"
    return [
        Figure(Metric(NAME, case, "CPU a chunk", "us", Better.LOWER), cpu_s * 1e6),
        Figure(Metric(NAME, case, "between two chunks", "ms", Better.LOWER), step_s * 1e3),
    ]
