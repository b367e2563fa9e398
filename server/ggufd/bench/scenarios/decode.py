"""decode: short prompts, long answers, some streams at once."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from ggufd.bench.measure.client import TimedAnswer
from ggufd.bench.measure.figures import Better, Metric, throughput
from ggufd.bench.measure.site import Case, Figure, Site, Sizes

NAME = "decode"
PROMPT = 24


def cases(sizes: Sizes) -> list[Case]:
    """One case for each number of streams."""
    needs = sizes.decode_tokens + 2 * PROMPT
    return [Case(NAME, plural(n), needs, partial(_measure, n), streams=n) for n in sizes.streams]


def plural(n: int) -> str:
    """`1 stream`, `4 streams`."""
    return f"{n} stream" if n == 1 else f"{n} streams"


def rates(scenario: str, case: str, answers: Sequence[TimedAnswer]) -> list[Figure]:
    """The rate of all streams together when there are several, and the median of each stream's own."""
    total = None if len(answers) == 1 else throughput([(answer.times, answer.per_piece) for answer in answers])
    own = tuple(rate for answer in answers if (rate := answer.rate) is not None)
    figures = []
    if total is not None:
        figures.append(Figure(Metric(scenario, case, "all streams", "tok/s", Better.HIGHER), total))
    if own:
        metric = Metric(scenario, case, "one stream", "tok/s", Better.HIGHER)
        figures.append(Figure(metric, statistics.median(own), own))
    return figures


def ratios(after: Sequence[Figure], before: Sequence[Figure], quantity: str) -> list[Figure]:
    """Ratios of the rates `after` to those `before`, called `quantity`; none for a rate too fast to measure."""
    known = {figure.metric.quantity: figure.value for figure in before}
    return [
        Figure(replace(figure.metric, quantity=quantity, unit="x"), figure.value / known[figure.metric.quantity])
        for figure in after
        if figure.metric.quantity in known
    ]


async def _measure(n: int, site: Site) -> list[Figure]:
    prompts = [site.words.text(PROMPT) for _ in range(n)]
    return rates(NAME, plural(n), await site.together(prompts, site.sizes.decode_tokens))
