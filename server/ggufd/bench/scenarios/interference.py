"""interference: ITL of running streams, and TTFT of a new request with a long prompt beside them."""

from __future__ import annotations

import asyncio
import itertools
import statistics

from ggufd.bench.measure.client import Stream, closing_all
from ggufd.bench.measure.figures import Better, Metric, longest_gap
from ggufd.bench.measure.site import Case, Figure, Site, Sizes

NAME = "interference"
RUNNING = 3
RUNNING_TOKENS = 768
SETTLE_S = 0.5


def cases(sizes: Sizes) -> list[Case]:
    """The one case."""
    needs = max(RUNNING_TOKENS + 64, sizes.new_prompt + sizes.new_prompt // 10 + 8)
    return [Case(NAME, _label(sizes), needs, _measure, streams=RUNNING + 1)]


def _label(sizes: Sizes) -> str:
    return f"{sizes.new_prompt:,} tokens arrive"


async def _measure(site: Site) -> list[Figure]:
    alone = (await site.client.complete(site.words.text(site.sizes.new_prompt), 4)).wait
    streams: list[Stream] = []
    with closing_all(streams):
        prompts = [site.words.text(24) for _ in range(min(RUNNING, max(1, site.server.slots - 1)))]
        streams.extend([await site.client.start(prompt, RUNNING_TOKENS) for prompt in prompts])
        await asyncio.gather(*(stream.first() for stream in streams))
        await asyncio.sleep(SETTLE_S)
        new = await site.client.complete(site.words.text(site.sizes.new_prompt), 4)
        await asyncio.sleep(0.1)  # the gap that the first token closes needs its other end
        arrivals = [list(stream.times) for stream in streams]
    return _figures(_label(site.sizes), arrivals, new.sent, new.wait, alone)


def _figures(case: str, arrivals: list[list[float]], sent: float, wait: float, alone: float) -> list[Figure]:
    # A stream that was over before the new request's first token has no ITL to show.
    gaps = tuple(longest_gap(times, sent, sent + wait) for times in arrivals if times and times[-1] >= sent + wait)
    steps = [b - a for times in arrivals for a, b in itertools.pairwise(times) if b < sent]
    figures = [
        Figure(Metric(NAME, case, "TTFT of the new request", "s", Better.LOWER), wait, (wait, alone)),
        Figure(Metric(NAME, case, "TTFT over that alone", "x", Better.LOWER), wait / alone, (wait, alone)),
    ]
    if gaps:
        figures.insert(
            0, Figure(Metric(NAME, case, "longest ITL of running streams", "s", Better.LOWER), max(gaps), gaps)
        )
    if steps:
        step = statistics.median(steps)
        figures.insert(0, Figure(Metric(NAME, case, "median ITL of running streams", "s", Better.LOWER), step))
    return figures
