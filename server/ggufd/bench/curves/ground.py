"""Common ground of the curves: extent, a server started with a curve's own flags, its client."""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from ggufd.bench.curves.curve import Curve
from ggufd.bench.measure.client import Client, TimedAnswer
from ggufd.bench.measure.discovery import discover
from ggufd.bench.measure.local import Local, started
from ggufd.bench.measure.site import Site, Sizes
from ggufd.bench.measure.words import Words, calibrate

_ANSWER_S = 1800.0
"""Reading 32k tokens takes minutes where somebody else is on the machine."""

Launch = Callable[..., AbstractContextManager[Local]]
"""Starts a server with these flags, ended when left."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Extent of the curves. Lengths in tokens; `repetitions` of each point where it costs little."""

    streams: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    tokens: int = 64
    contexts: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768)
    chats: tuple[int, ...] = (1, 10, 25, 50, 100, 200)
    chat_tokens: int = 200
    gaps_ms: tuple[int, ...] = (20, 50, 100, 200, 400, 1000)
    new_prompt: int = 800
    repetitions: int = 3


QUICK = Extent(
    streams=(1, 4),
    tokens=16,
    contexts=(512, 1024),
    chats=(1, 4),
    chat_tokens=60,
    gaps_ms=(50, 200),
    new_prompt=150,
    repetitions=1,
)
"""Two points of each, to see that all works."""


@dataclass(frozen=True, slots=True)
class Ground:
    """Means of measuring a curve. `launch_long` starts the model whose context allows the long ones."""

    launch: Launch
    launch_long: Launch
    extent: Extent
    seed: int
    say: Callable[[str], None]
    curves: list[Curve] = field(default_factory=list)

    def begin(self, name: str, x: str) -> Curve:
        """Begin a curve, which is kept when the run is cut short."""
        curve = Curve(name, x)
        self.curves.append(curve)
        return curve

    async def site(self, local: Local, *parts: object) -> Site:
        """The server with unseen texts, warmed up."""
        client = Client(local.url, timeout_s=_ANSWER_S)
        server = await discover(client)
        rate = await calibrate(client, self.seed)
        site = Site(server, Words(rate, self.seed, *parts), Sizes(new_prompt=self.extent.new_prompt))
        await client.complete(site.words.text(16), 16)
        return site


def ggufd(model: str, n_threads: int) -> Launch:
    """Launcher of ggufd without prompt lookup, which would say more about the text than about the server.

    Each token is sent by itself, so that a client sees the steps.
    """
    flags = ["-m", model] if model else []
    flags += ["-t", str(n_threads)] if n_threads else []
    command = [sys.executable, "-m", "ggufd", "serve", "--host", "127.0.0.1", "--port", "{port}", *flags]
    return lambda *more: started([*command, "--spec-draft-n-max", "0", "--text-interval-ms", "0", *more])


def step_s(answers: Sequence[TimedAnswer]) -> float:
    """Median time between two tokens (ITL) of a stream."""
    return statistics.median(b - a for answer in answers for a, b in itertools.pairwise(answer.times))


def mib(n_bytes: float) -> float:
    return n_bytes / 2**20
