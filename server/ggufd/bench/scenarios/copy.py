"""copy: an answer that quotes a text of the prompt, word for word, at temperature 0."""

from __future__ import annotations

from functools import partial

from ggufd.bench.measure.site import Case, Figure, Site, Sizes
from ggufd.bench.scenarios.decode import plural, rates

NAME = "copy"
DOCUMENT = 240
"""Tokens of the text that is quoted; new words each run."""

ANSWERS = 3


def cases(sizes: Sizes) -> list[Case]:
    """One case: a lone stream."""
    return [Case(NAME, plural(1), 2 * DOCUMENT + sizes.decode_tokens + 64, partial(_measure))]


async def _measure(site: Site) -> list[Figure]:
    """Measure a quotation that the prompt begins, so that the model only continues it."""
    answers = []
    for _ in range(ANSWERS):
        document = site.words.text(DOCUMENT)
        begun = " ".join(document.split()[:12])
        prompt = f"A text:\n\n{document}\n\nThe same text once more, word for word:\n\n{begun}"
        answers.append(await site.client.complete(prompt, min(site.sizes.decode_tokens, DOCUMENT - 40)))
    return [figure for figure in rates(NAME, plural(1), answers) if figure.metric.quantity == "one stream"]
