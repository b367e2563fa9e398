"""Command group `ggufd bench`; without the name of a command it measures the server at a URL."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from ggufd.bench.chunks import chunks
from ggufd.bench.cluster import cluster
from ggufd.bench.command import bench
from ggufd.bench.curves.command import curves
from ggufd.bench.engine.command import engine
from ggufd.bench.goodput.command import goodput
from ggufd.bench.start import start

_DEFAULT = "http"


class _Group(TyperGroup):
    """`bench URL` is `bench http URL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Group,
    help="Measure any OpenAI-compatible server, or two in turns.",
    epilog="`ggufd bench URL` is `ggufd bench http URL`; its options: `ggufd bench http --help`.",
    no_args_is_help=True,
)
app.command(_DEFAULT)(bench)
app.command("engine")(engine)
app.command("start")(start)
app.command("chunks")(chunks)
app.command("curves")(curves)
app.command("cluster")(cluster)
app.command("goodput")(goodput)
