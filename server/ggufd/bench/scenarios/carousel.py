"""carousel: turns of more chats than there are slots."""

from __future__ import annotations

import statistics

from ggufd.bench.measure.figures import Better, Metric
from ggufd.bench.measure.site import Case, Figure, Site, Sizes

NAME = "carousel"
MESSAGE = 25
ANSWER = 16


def cases(sizes: Sizes) -> list[Case]:
    """The one case: the same chats, first one at a time, then several."""
    rounds = len(sizes.at_once)
    needs = sizes.chat_tokens + sizes.chat_tokens // 10 + rounds * 2 * (MESSAGE + ANSWER)
    return [Case(NAME, f"{sizes.chats} chats, {sizes.chat_tokens:,} tokens", needs, _measure)]


async def _measure(site: Site) -> list[Figure]:
    sizes = site.sizes
    chats = [site.words.text(sizes.chat_tokens) for _ in range(sizes.chats)]
    await site.remember(chats)
    figures = []
    for at_once in sizes.at_once:
        waits: list[float] = []
        for start in range(0, len(chats), at_once):
            waits += await _turns(site, chats, range(start, min(start + at_once, len(chats))))
        metric = Metric(NAME, f"{sizes.chats} chats, {at_once} at once", "median TTFT", "s", Better.LOWER)
        figures.append(Figure(metric, statistics.median(waits), tuple(waits)))
    return figures


async def _turns(site: Site, chats: list[str], which: range) -> list[float]:
    """TTFT of a turn of some chats, sent at once. The chats grow by it."""
    for index in which:
        chats[index] += f"\n{site.words.text(MESSAGE)}\n"
    answers = await site.together([chats[index] for index in which], ANSWER)
    for index, answer in zip(which, answers, strict=True):
        chats[index] += answer.text
    return [answer.wait for answer in answers]
