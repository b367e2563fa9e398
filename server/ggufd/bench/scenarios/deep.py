"""deep: decode after a long cached history, and TTFT of a short new message at that depth."""

from __future__ import annotations

import statistics
from functools import partial

from ggufd.bench.measure.figures import Better, Metric
from ggufd.bench.measure.site import Case, Figure, Site, Sizes
from ggufd.bench.scenarios.decode import plural, rates

NAME = "deep"
MESSAGES = (25, 40, 57)


def cases(sizes: Sizes) -> list[Case]:
    """One case for each number of streams."""
    needs = sizes.depth + sizes.depth // 10 + sizes.decode_tokens + sum(MESSAGES) + 16
    return [Case(NAME, plural(n), needs, partial(_measure, n), streams=n) for n in sizes.deep_streams]


async def _measure(n: int, site: Site) -> list[Figure]:
    """The histories are read first, so that all streams start to decode at the same time."""
    histories = [site.words.text(site.sizes.depth) for _ in range(n)]
    await site.remember(histories)
    answers = await site.together(histories, site.sizes.decode_tokens)
    figures = rates(NAME, plural(n), answers)
    text = histories[0] + answers[0].text
    waits = []
    for length in MESSAGES:
        text += "\n" + site.words.text(length)
        answer = await site.client.complete(text, 2)
        text += answer.text
        waits.append(answer.wait)
    metric = Metric(NAME, plural(n), "TTFT of a short message", "s", Better.LOWER)
    return [*figures, Figure(metric, statistics.median(waits), tuple(waits))]
