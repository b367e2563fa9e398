"""`ggufd bench cluster`: what the ingress of a cluster adds to the first byte and to each token, and its CPU time.

With --chats it is what the routing of a cluster that runs is worth, beside plain Ray Serve's. Without it both ways end
at a program that writes words of a set pace, each with the time at which it was sent: no model runs, and what is
measured is the way alone.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ggufd.bench.beside.compare import compare
from ggufd.bench.beside.growing_chats import ChatLoad
from ggufd.bench.measure.client import BenchError, Client, TimedAnswer
from ggufd.bench.measure.figures import Better, Metric
from ggufd.bench.measure.local import Local, started
from ggufd.bench.measure.output import console, failing_in_one_line, say, write_json
from ggufd.bench.measure.report import Sheet
from ggufd.bench.measure.site import Figure
from ggufd.bench.measure.table import show

NAME = "cluster"
_PROMPT = "one word after the other"


def cluster(
    streams: Annotated[list[int] | None, typer.Option(min=1, help="Streams at once (repeatable): 1, 8, 32.")] = None,
    tokens: Annotated[int, typer.Option(min=8, help="Tokens of each.")] = 100,
    pace: Annotated[float, typer.Option(min=0.1, help="Tokens a second of each stream.")] = 50.0,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions, of both ways in turns.")] = 3,
    ingress: Annotated[
        str,
        typer.Option(help="Command line of what is measured, with {port} and {direct}; the ingress by default."),
    ] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every sample to this file.")] = None,
    chats: Annotated[
        int | None,
        typer.Option(min=1, help="Play so many growing chats at the cluster that runs, and at plain Ray Serve beside."),
    ] = None,
    turns: Annotated[int, typer.Option(min=1, help="With --chats: turns of each.")] = 6,
    clients: Annotated[int, typer.Option(min=1, help="With --chats: requests at once.")] = 4,
    opening: Annotated[int, typer.Option(min=1, help="With --chats: tokens of a first message.")] = 300,
    dashboard: Annotated[
        str, typer.Option(envvar="RAY_DASHBOARD_ADDRESS", help="With --chats: Ray's dashboard.")
    ] = "http://127.0.0.1:8265",
    seed: Annotated[int | None, typer.Option(help="Draw the same texts as another run; random by default.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="GGUFD_BENCH_API_KEY", help="With --chats: key to send.")
    ] = None,
) -> None:
    """Measure what an ingress adds to the first byte and the delay of a token, and the CPU time that a token costs.

    With --chats: how much of the prompts comes from caches, and how fast chats are answered, by the cluster that runs
    here and by plain Ray Serve with as many of the same servers, which it starts on the same Ray for so long.
    """
    with failing_in_one_line():
        if chats is not None:
            seed = random.SystemRandom().randrange(2**32) if seed is None else seed
            say(f"seed {seed}")
            sheet = compare(dashboard, ChatLoad(chats, turns, clients, opening), rounds, seed, api_key)
            _finish(sheet, json_file)
            return
        sheet = Sheet(["through the ingress", "directly"])
        with (
            started([sys.executable, "-m", "ggufd.bench.paced_app", "{port}", f"{1 / pace:.6f}"]) as paced,
            started(ingress.replace("{direct}", paced.url) or _own(paced)) as front,
        ):
            for n_streams in streams or (1, 8, 32):
                asyncio.run(_measure((front, paced), (n_streams, tokens), rounds, sheet))
    _finish(sheet, json_file)


def _finish(sheet: Sheet, json_file: Path | None) -> None:
    show(sheet, console())
    write_json(json_file, sheet.as_json())


def _own(paced: Local) -> list[str]:
    return [sys.executable, "-m", "ggufd.cluster.ingress", "{port}", f"paced={paced.url}"]


async def _measure(sides: tuple[Local, Local], size: tuple[int, int], rounds: int, sheet: Sheet) -> None:
    n_streams, n_tokens = size
    added: list[tuple[float, float]] = []
    for repetition in range(rounds + 1):
        found = [await _run(side, n_streams, n_tokens if repetition else 8) for side in sides]
        if repetition:  # the first is a warm-up
            added.append((found[0].first_s - found[1].first_s, found[0].delay_s - found[1].delay_s))
            for side, one in enumerate(found):
                sheet.add(repetition - 1, side, one.figures(n_streams, has_cpu=side == 0))
    first_s, delay_s = (statistics.median(values) for values in zip(*added, strict=True))
    say(f"{n_streams} streams: the first byte comes {first_s * 1e3:.2f} ms later, a token {delay_s * 1e3:.2f} ms")


class _Passage:
    """What one run found: medians over all its streams and tokens."""

    def __init__(self, answers: Sequence[TimedAnswer], cpu_s: float) -> None:
        delays = sorted(delay for answer in answers for delay in _delays(answer))
        self.first_s = statistics.median(answer.wait for answer in answers)
        self.delay_s = statistics.median(delays)
        self.tail_s = delays[int(len(delays) * 0.99)]
        self.cpu_s = cpu_s / len(delays)

    def figures(self, n_streams: int, *, has_cpu: bool) -> list[Figure]:
        """Rows of the table; the program that both ways end at has no CPU time worth telling."""
        case = f"{n_streams} streams"
        named = [("first byte", self.first_s), ("delay a token", self.delay_s), ("delay a token, p99", self.tail_s)]
        named += [("CPU a token", self.cpu_s)] if has_cpu else []
        return [Figure(Metric(NAME, case, name, "ms", Better.LOWER), value * 1e3) for name, value in named]


def _delays(answer: TimedAnswer) -> list[float]:
    """How long each word was on its way."""
    try:
        return [at - int(word) / 1e9 for at, word in zip(answer.times, answer.text.split(), strict=True)]
    except ValueError:
        raise BenchError(
            "the words that came are not those of the paced program: does {direct} stand in --ingress?"
        ) from None


async def _run(side: Local, n_streams: int, n_tokens: int) -> _Passage:
    client = Client(side.url)
    before_s = side.cpu_s()
    answers = await asyncio.gather(*(client.complete(_PROMPT, n_tokens) for _ in range(n_streams)))
    return _Passage(answers, side.cpu_s() - before_s)
