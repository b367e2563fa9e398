"""burst: users who arrive at once with a common uncached prefix."""

from __future__ import annotations

from ggufd.bench.measure.site import Case, Figure, Site, Sizes
from ggufd.bench.scenarios.shared import crowd, label, needs

NAME = "burst"


def cases(sizes: Sizes) -> list[Case]:
    """The one case."""
    return [Case(NAME, label(sizes), needs(sizes), _measure, streams=sizes.users)]


async def _measure(site: Site) -> list[Figure]:
    return await crowd(site, NAME, site.words.text(site.sizes.prefix))
