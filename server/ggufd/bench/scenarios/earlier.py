"""old-chats: decode of some cached chats while every slot holds one."""

from __future__ import annotations

from ggufd.bench.measure.site import Case, Figure, Site, Sizes
from ggufd.bench.scenarios.decode import plural, rates

NAME = "old-chats"
STREAMS = 4
CHAT = 400
MESSAGE = 25


def cases(sizes: Sizes) -> list[Case]:
    """The one case."""
    needs = CHAT + CHAT // 10 + 2 * MESSAGE + sizes.decode_tokens
    return [Case(NAME, plural(STREAMS), needs, _measure, streams=STREAMS)]


async def _measure(site: Site) -> list[Figure]:
    """Continue chats drawn at random, wherever the server cached them."""
    chats = [site.words.text(CHAT) for _ in range(max(STREAMS, site.server.slots))]
    await site.remember(chats)
    prompts = [f"{chat}\n{site.words.text(MESSAGE)}" for chat in site.words.random.sample(chats, STREAMS)]
    return rates(NAME, plural(STREAMS), await site.together(prompts, site.sizes.decode_tokens))
