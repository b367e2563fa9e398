"""crowd: as many clients as slots, then twice and four times as many, each with one request after another.

Clients beyond the slots wait in the queue, and should not slow down the running ones. All in one repetition, so that
the ratio compares neighbouring measurements.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence

from ggufd.bench.measure.client import Stream, closing_all
from ggufd.bench.measure.figures import Better, Metric, percentile
from ggufd.bench.measure.site import Case, Figure, Site, Sizes

NAME = "crowd"
PROMPT = 24
HEAD_START_S = 1.0
TIMES = (1, 2, 4)


def cases(sizes: Sizes) -> list[Case]:
    """The one case; how many clients it has is up to the server's slots."""
    return [Case(NAME, "clients in the queue", 2 * (PROMPT + sizes.decode_tokens), _measure)]


async def _measure(site: Site) -> list[Figure]:
    figures: list[Figure] = []
    base: float | None = None
    for times in TIMES:
        n_clients = times * site.server.slots
        arrivals, start, end = await _watch(site, n_clients)
        rate = sum(start < moment <= end for own in arrivals for moment in own) / (end - start)
        base = rate if base is None else base
        case = f"{n_clients} clients on {site.server.slots} slots"
        figures += _figures(case, rate, rate / base if times > 1 and base else None, arrivals)
    return figures


async def _watch(site: Site, n_clients: int) -> tuple[list[list[float]], float, float]:
    """Arrivals of every answer, and the start and end of the measured time."""
    streams: list[Stream] = []
    with closing_all(streams):
        clients = [asyncio.create_task(_client(site, streams)) for _ in range(n_clients)]
        try:
            start = time.perf_counter() + HEAD_START_S
            end = start + site.sizes.seconds
            # A client only ends by an error, which is then the scenario's.
            done, _ = await asyncio.wait(
                clients, timeout=end - time.perf_counter(), return_when=asyncio.FIRST_COMPLETED
            )
            for one in done:
                one.result()
            arrivals = [list(stream.times) for stream in streams]
        finally:
            for one in clients:
                one.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
    return arrivals, start, end


async def _client(site: Site, streams: list[Stream]) -> None:
    """Endless unseen prompts, one after the other; answers differ in length, so that they do not end together."""
    most = site.sizes.decode_tokens
    while True:
        n_tokens = site.words.random.randint(max(2, most // 2), most)
        stream = await site.client.start(site.words.text(PROMPT), n_tokens)
        streams.append(stream)
        await stream.answer()


def _figures(case: str, rate: float, over: float | None, arrivals: Sequence[Sequence[float]]) -> list[Figure]:
    found = [Figure(Metric(NAME, case, "all clients", "tok/s", Better.HIGHER), rate)]
    if over is not None:
        found.append(Figure(Metric(NAME, case, "over as many clients as slots", "x", Better.HIGHER), over))
    gaps = [b - a for own in arrivals for a, b in itertools.pairwise(own)]
    if gaps:
        found.append(Figure(Metric(NAME, case, "ITL, p99", "s", Better.LOWER), percentile(gaps, 0.99)))
        found.append(Figure(Metric(NAME, case, "ITL, median", "s", Better.LOWER), statistics.median(gaps)))
    return found
