"""shared: users who arrive at once with a common cached prefix."""

from __future__ import annotations

import statistics

from ggufd.bench.measure.figures import Better, Metric
from ggufd.bench.measure.site import Case, Figure, Site, Sizes

NAME = "shared"
QUESTION = 25
ANSWER = 16


def cases(sizes: Sizes) -> list[Case]:
    """The one case."""
    return [Case(NAME, label(sizes), needs(sizes), _measure, streams=sizes.users)]


def label(sizes: Sizes) -> str:
    """Label of the case: number of users, length of the prefix."""
    return f"{sizes.users} users, {sizes.prefix:,} tokens"


def needs(sizes: Sizes) -> int:
    """Tokens of the longest sequence."""
    return sizes.prefix + sizes.prefix // 10 + 2 * QUESTION + ANSWER


async def crowd(site: Site, scenario: str, prefix: str) -> list[Figure]:
    """TTFT of all users' questions after the same prefix, sent at once."""
    prompts = [f"{prefix}\n\n{site.words.text(QUESTION)}" for _ in range(site.sizes.users)]
    waits = tuple(answer.wait for answer in await site.together(prompts, ANSWER))
    case = label(site.sizes)
    return [
        Figure(Metric(scenario, case, "median TTFT", "s", Better.LOWER), statistics.median(waits), waits),
        Figure(Metric(scenario, case, "longest TTFT", "s", Better.LOWER), max(waits), waits),
    ]


async def _measure(site: Site) -> list[Figure]:
    prefix = site.words.text(site.sizes.prefix)
    await site.client.complete(f"{prefix}\n\n{site.words.text(QUESTION)}", ANSWER)
    return await crowd(site, NAME, prefix)
