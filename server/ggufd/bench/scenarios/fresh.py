"""fresh-short: TTFT of a short prompt, on a server just started and with other chats cached.

Only the first repetition can see a fresh server, and only when the server was started just before.
"""

from __future__ import annotations

import statistics

from ggufd.bench.measure.figures import Better, Metric
from ggufd.bench.measure.site import Case, Figure, Site, Sizes

NAME = "fresh-short"
PROMPT = 30
TRIES = 3


def cases(sizes: Sizes) -> list[Case]:
    """The one case; it remembers what each server did when it was fresh."""
    label = f"{PROMPT} tokens"
    return [Case(NAME, label, sizes.chat_tokens + sizes.chat_tokens // 10, _FreshShort(label).measure)]


class _FreshShort:
    def __init__(self, label: str) -> None:
        self._label = label
        self._fresh: dict[str, tuple[float, ...]] = {}

    async def measure(self, site: Site) -> list[Figure]:
        url = site.client.url
        n_chats = 1
        if url not in self._fresh:
            self._fresh[url] = tuple([await self._short(site) for _ in range(TRIES)])
            n_chats = site.server.slots
        # Before each try a long chat comes, so that a server with one slot has one to make room for, too.
        await site.remember([site.words.text(site.sizes.chat_tokens) for _ in range(n_chats)])
        cached = []
        for _ in range(TRIES):
            await site.remember([site.words.text(site.sizes.chat_tokens)])
            cached.append(await self._short(site))
        return self._figures(self._fresh[url], tuple(cached))

    async def _short(self, site: Site) -> float:
        return (await site.client.complete(site.words.text(PROMPT), 4)).wait

    def _figures(self, fresh: tuple[float, ...], cached: tuple[float, ...]) -> list[Figure]:
        alone, beside = statistics.median(fresh), statistics.median(cached)
        return [
            Figure(Metric(NAME, self._label, "fresh", "s", Better.LOWER), alone, fresh),
            Figure(Metric(NAME, self._label, "beside cached chats", "s", Better.LOWER), beside, cached),
            Figure(Metric(NAME, self._label, "beside cached over fresh", "x", Better.LOWER), beside / alone),
        ]
