"""compile: ITL of running streams while others send large JSON schemas that the server has not seen."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple

from ggufd.bench.measure.client import Stream, closing_all
from ggufd.bench.measure.figures import Better, Metric, longest_gap
from ggufd.bench.measure.site import Case, Figure, Site, Sizes
from ggufd.bench.scenarios.interference import RUNNING, RUNNING_TOKENS, SETTLE_S
from ggufd.bench.scenarios.schema import drawn_schema

NAME = "compile"
N_NEW = 4
PARTS = 24
PROMPT = 24


class _NewRequest(NamedTuple):
    """TTFT of a request, and the longest ITL of the running streams meanwhile, in seconds."""

    wait: float
    gap: float


def cases(sizes: Sizes) -> list[Case]:
    """The one case."""
    return [Case(NAME, f"{PARTS} objects arrive", RUNNING_TOKENS + 64, _measure, streams=RUNNING + 1)]


def large_schema(site: Site) -> dict[str, Any]:
    """An object of `PARTS` objects, each with a few kinds of values: about 20,000 characters."""
    parts = {f"part_{i}": drawn_schema(site.words.random, 2) for i in range(PARTS)}
    return {"type": "object", "properties": parts, "required": list(parts), "additionalProperties": False}


async def _measure(site: Site) -> list[Figure]:
    """Free requests and constrained ones in turns, so that the streams are equally deep beside both."""
    streams: list[Stream] = []
    with closing_all(streams):
        prompts = [site.words.text(PROMPT) for _ in range(min(RUNNING, max(1, site.server.slots - 1)))]
        streams.extend([await site.client.start(prompt, RUNNING_TOKENS) for prompt in prompts])
        await asyncio.gather(*(stream.first() for stream in streams))
        await asyncio.sleep(SETTLE_S)
        free, held = [], []
        for _ in range(N_NEW):
            free.append(await _new_request(site, streams, {}))
            held.append(await _new_request(site, streams, {"json_schema": large_schema(site), "ignore_eos": False}))
    return _figures(free, held)


async def _new_request(site: Site, streams: list[Stream], extra: Mapping[str, Any]) -> _NewRequest:
    stream = await site.client.start(site.words.text(PROMPT), 4, extra)
    answer = await stream.answer()
    await asyncio.sleep(0.1)  # the gap that its end closes needs its other end
    end = answer.sent + answer.wait
    return _NewRequest(answer.wait, max(longest_gap(one.times, answer.sent, end) for one in streams))


def _figures(free: list[_NewRequest], held: list[_NewRequest]) -> list[Figure]:
    def metric(quantity: str, unit: str = "s") -> Metric:
        return Metric(NAME, f"{PARTS} objects arrive", quantity, unit, Better.LOWER)

    beside_free, beside_held = max(one.gap for one in free), max(one.gap for one in held)
    gaps = tuple(one.gap for one in held)
    return [
        Figure(
            metric("longest ITL of running streams beside free requests"), beside_free, tuple(one.gap for one in free)
        ),
        Figure(metric("longest ITL of running streams"), beside_held, gaps),
        Figure(metric("longest ITL over that beside free requests", "x"), beside_held / beside_free),
        Figure(metric("TTFT of the new request"), max(one.wait for one in held), tuple(one.wait for one in held)),
    ]
