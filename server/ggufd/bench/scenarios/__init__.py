"""Registry of the scenarios by name, in the order they run: what needs a fresh server comes first."""

from __future__ import annotations

from collections.abc import Callable

from ggufd.bench.measure.site import Case, Sizes
from ggufd.bench.scenarios import (
    background,
    burst,
    carousel,
    chat,
    compiling,
    copy,
    crowd,
    decode,
    deep,
    earlier,
    fairness,
    fresh,
    full,
    images,
    interference,
    prefill,
    schema,
    shared,
    tools,
)

SCENARIOS: dict[str, Callable[[Sizes], list[Case]]] = {
    "fresh-short": fresh.cases,
    "decode": decode.cases,
    "deep": deep.cases,
    "copy": copy.cases,
    "schema": schema.cases,
    "tools": tools.cases,
    "prefill": prefill.cases,
    "shared": shared.cases,
    "burst": burst.cases,
    "interference": interference.cases,
    "images": images.cases,
    "compile": compiling.cases,
    "chat": chat.cases,
    "carousel": carousel.cases,
    "background": background.cases,
    "fairness": fairness.cases,
    "crowd": crowd.cases,
    "full": full.cases,
    "old-chats": earlier.cases,
}
