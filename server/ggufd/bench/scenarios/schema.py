"""schema: decode rate under unseen JSON schemas, beside free text of the same length."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from ggufd.bench.measure.site import Case, Figure, Site, Sizes
from ggufd.bench.measure.words import sentences
from ggufd.bench.scenarios.decode import plural, rates, ratios

NAME = "schema"
PROMPT = 24
STREAMS = (1, 8)


def cases(sizes: Sizes) -> list[Case]:
    """One stream and eight, or as many as are measured at most."""
    counts = sorted({min(n, max(sizes.streams)) for n in STREAMS})
    needs = sizes.decode_tokens + 2 * PROMPT + 32
    return [Case(NAME, plural(n), needs, partial(_measure, n), streams=n) for n in counts]


def drawn_schema(source: random.Random, n_items: int) -> dict[str, Any]:
    """An object of a few kinds of values and a list of at least `n_items`; names and choices are drawn anew."""
    names = [sentences(source, 2).rstrip(".").lower().replace(" ", "_") + f"_{i}" for i in range(6)]
    choices = [sentences(source, 1).rstrip(".") for _ in range(4)]
    item = {"type": "string", "maxLength": 24}
    kinds: list[dict[str, Any]] = [
        {"type": "string", "maxLength": 40},
        {"type": "integer"},
        {"enum": sorted(set(choices))},
        {"type": "boolean"},
        {
            "type": "object",
            "properties": {"first": item, "second": {"type": "number"}},
            "required": ["first", "second"],
        },
    ]
    source.shuffle(kinds)
    kinds.append({"type": "array", "items": item, "minItems": n_items, "maxItems": 2 * n_items})
    properties = dict(zip(names, kinds, strict=True))
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


async def _measure(n: int, site: Site) -> list[Figure]:
    """Measure free text, then constrained. A constrained answer may end before its length, a free one does not."""
    texts = [site.words.text(PROMPT) for _ in range(n)]
    free = rates(NAME, plural(n), await site.together(texts, site.sizes.decode_tokens))
    prompts = [f"{site.words.text(PROMPT)}\n\nThe same as JSON:\n" for _ in range(n)]
    schemas = [drawn_schema(site.words.random, max(1, site.sizes.decode_tokens // 12)) for _ in range(n)]
    extras = [{"json_schema": schema, "ignore_eos": False} for schema in schemas]
    held = rates(NAME, plural(n), await site.together(prompts, site.sizes.decode_tokens, extras))
    figures = [figure for figure in held if n == 1 or figure.metric.quantity == "all streams"]
    return [*figures, *ratios(figures, free, "over free text")]
