"""streams: rate, TTFT and ITL over concurrent streams, and the share of a step outside llama.cpp."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ggufd.bench.curves.ground import Extent, Ground, step_s
from ggufd.bench.measure.client import Client
from ggufd.bench.measure.figures import throughput

PROMPT = 24
ROOM = 64
"""Tokens of a slot beside the answer: the prompt, which is not exactly as long as wanted."""

TOKENS_A_STREAM = 2
"""Tokens of an answer for each stream, where that is more: while prompts are read, a step reads about one."""


async def measure(ground: Ground) -> None:
    """One server for all points."""
    extent = ground.extent
    curve = ground.begin("streams", "streams at once")
    n_slots = max(extent.streams)
    with ground.launch("-np", str(n_slots), "-c", str(n_slots * (_n_tokens(extent, n_slots) + ROOM))) as local:
        site = await ground.site(local, "streams")
        for n in extent.streams:
            runs = []
            for _ in range(extent.repetitions):
                prompts = [site.words.text(PROMPT) for _ in range(n)]
                runs.append(await site.together(prompts, _n_tokens(extent, n)))
            curve.add(n, "a step", "ms", [1000 * step_s(run) for run in runs])
            rates = [throughput([(answer.times, answer.per_piece) for answer in run]) for run in runs]
            curve.add(n, "all streams", "tok/s", [rate for rate in rates if rate is not None])
            waits = [statistics.median(answer.wait for answer in run) for run in runs]
            curve.add(n, "median TTFT, all at once", "s", waits)
            for quantity, share in (await _shares(site.client, n)).items():
                curve.add(n, quantity, "% of a step", [100 * share])
            ground.say(f"streams: {n} of {n_slots}")


def _n_tokens(extent: Extent, n: int) -> int:
    """Answer length with which `n` streams all decode at once for a while."""
    return max(extent.tokens, TOKENS_A_STREAM * n)


async def _shares(client: Client, n: int) -> dict[str, float]:
    return shares((await client.get("/debug/steps"))["traceEvents"], n)


def shares(events: Sequence[Mapping[str, Any]], n_rows: int) -> dict[str, float]:
    """Shares of pure decode steps of `n_rows` rows: planning, everything but llama.cpp's decode, and by how much that
    took longer or shorter than expected.

    `events` are those of `GET /debug/steps`. Sending counts as a part of its step. Empty without such steps.
    """
    steps = [
        phases
        for phases in _steps(events)
        if (phases["args"]["decode rows"], phases["args"]["prefill rows"]) == (n_rows, 0)
    ]
    whole = sum(one["step"] + one["send"] for one in steps)
    if not whole:
        return {}
    decode = sum(one["decode"] for one in steps)
    found = {"planning": sum(one["plan"] for one in steps) / whole, "all but llama.cpp's decode": 1 - decode / whole}
    errors = [abs(1000 * one["args"]["expected ms"] / one["decode"] - 1) for one in steps if one["args"]["expected ms"]]
    return found | ({"error of the cost model, median": statistics.median(errors)} if errors else {})


def _steps(events: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each step's phases by name, in microseconds, and its `args`."""
    found: dict[str, Any] = {}
    for event in events:
        if event["name"] == "step":
            if found:
                yield found
            found = {"args": event["args"]}
        found[event["name"]] = event["dur"]
    if found:
        yield found
