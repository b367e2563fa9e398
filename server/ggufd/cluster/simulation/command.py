"""`ggufd cluster simulate`: what routing, lost servers and a flood do in a cluster of any size, on one core."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from ggufd.cluster.simulation.comparison import POLICIES
from ggufd.cluster.simulation.report import Simulation
from ggufd.cluster.simulation.run import SEED, Scale, Tell, decode_tok_s_for

_T = TypeVar("_T")

_INTERRUPTED = 130

NAMES = {name.replace(", ", "-").replace(" ", "-"): name for name in POLICIES}
"""Policies as the command line has them."""

_DEFAULT = "ggufd,power-of-two,consistent-hashing,prefix-tree"


def simulate(
    replicas: Annotated[int, typer.Option(min=1, metavar="N", help="Servers, of 16 slots and 100 kept chats.")] = 1000,
    chats: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Chats at a time; 100 for each server by default.")
    ] = None,
    utilisation: Annotated[
        float, typer.Option(min=0.01, max=0.99, metavar="X", help="Share of the slots in use, by the pace of answers.")
    ] = 0.6,
    policies: Annotated[str, typer.Option(metavar="NAME,...", help=f"Of {', '.join(NAMES)}.")] = _DEFAULT,
    lost_share: Annotated[
        float, typer.Option(min=0, max=0.9, metavar="X", help="Share of the servers lost at once; 0 leaves it out.")
    ] = 0.1,
    minutes: Annotated[float, typer.Option(min=0.1, metavar="X", help="Time that is measured.")] = 15.0,
    warm_minutes: Annotated[float, typer.Option(min=0, metavar="X", help="Time before that.")] = 10.0,
    ingresses: Annotated[int, typer.Option(min=1, metavar="N", help="Ingresses.")] = 4,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="The same one gives the same figures.")] = SEED,
) -> None:
    """Compare routing policies over simulated servers, and show what lost servers and a flood do. Needs no Ray."""
    if 0 < lost_share * replicas < 1:
        raise typer.BadParameter(f"{lost_share:g} of {replicas} servers is not one", param_hint="--lost-share")
    n_chats = 100 * replicas if chats is None else chats
    scale = Scale(
        replicas,
        n_chats,
        ingresses,
        warm_s=60 * warm_minutes,
        ends_s=60 * (warm_minutes + minutes),
        decode_tok_s=_decode_tok_s(utilisation, replicas, n_chats),
        seed=seed,
    )
    simulation = Simulation(scale, _policies(policies), lost_share)
    screen = Console()
    try:
        with RunBar(simulation.n_runs, screen) as bar:
            for line in simulation.report(bar.run):
                screen.print(Text(line.text, line.style), soft_wrap=True)
    except KeyboardInterrupt:
        print("ggufd: interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED)


def _policies(asked: str) -> list[str]:
    """Policies by their names on the command line, each once. Raises BadParameter."""
    names = list(dict.fromkeys(name.strip() for name in asked.split(",") if name.strip()))
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        wrong = f"there is no policy {unknown[0]!r}" if unknown else "no policy is named"
        raise typer.BadParameter(f"{wrong}; known are {', '.join(NAMES)}", param_hint="--policies")
    return [NAMES[name] for name in names]


def _decode_tok_s(utilisation: float, n_replicas: int, n_chats: int) -> float:
    """Pace of answers. Raises BadParameter where so many chats cannot use that share of the slots."""
    try:
        return decode_tok_s_for(utilisation, n_replicas, n_chats)
    except ValueError as error:
        raise typer.BadParameter(
            f"{error}: change --utilisation, or --chats beside --replicas", param_hint="--utilisation"
        ) from None


class RunBar:
    """Progress of all runs: a bar on a terminal, elsewhere a line on stderr for each that is done."""

    def __init__(self, n_runs: int, screen: Console) -> None:
        # Where the report goes to a file the bar is still seen; where both are on a terminal it stays below the report.
        console = screen if screen.is_terminal else Console(stderr=True)
        self._n_done = 0
        self._progress = Progress(
            TextColumn("{task.description:20s}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=n_runs)

    def __enter__(self) -> RunBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def run(self, label: str, run: Callable[[Tell], _T]) -> _T:
        """Do one run."""
        started_s = time.monotonic()
        self._progress.update(self._task, description=label[:20])
        found = run(lambda share: self._progress.update(self._task, completed=self._n_done + share))
        self._n_done += 1
        self._progress.update(self._task, completed=self._n_done)
        if self._progress.disable:
            print(f"{label}: {time.monotonic() - started_s:.0f} s", file=sys.stderr, flush=True)
        return found
