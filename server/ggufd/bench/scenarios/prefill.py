"""prefill: a long prompt that the server has not seen, alone."""

from __future__ import annotations

from functools import partial

from ggufd.bench.measure.figures import Better, Metric
from ggufd.bench.measure.site import Case, Figure, Site, Sizes

NAME = "prefill"


def cases(sizes: Sizes) -> list[Case]:
    """One case for each length."""
    return [Case(NAME, f"{n:,} tokens", n + n // 20 + 8, partial(_measure, n)) for n in sizes.prefill]


async def _measure(n: int, site: Site) -> list[Figure]:
    answer = await site.client.complete(site.words.text(n), 4)
    read = answer.prompt_tokens or n
    case = f"{n:,} tokens"
    return [
        Figure(Metric(NAME, case, "TTFT", "s", Better.LOWER), answer.wait),
        Figure(Metric(NAME, case, "rate", "tok/s", Better.HIGHER), read / answer.wait, (float(read), answer.wait)),
    ]
