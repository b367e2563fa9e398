"""gaps: the trade of `max_gap_ms`, the TTFT of a new request against the longest ITL of running streams."""

from __future__ import annotations

from ggufd.bench.curves.ground import Ground
from ggufd.bench.measure.site import Figure
from ggufd.bench.scenarios import interference

N_SLOTS = interference.RUNNING + 1

_UNITS = {"longest ITL of running streams": "s", "TTFT of the new request": "s", "TTFT over that alone": "x"}
"""The scenario's quantities that are drawn, and their units."""


async def measure(ground: Ground) -> None:
    """A server for each value; the scenario `interference` on it."""
    curve = ground.begin("gaps", "max_gap_ms")
    n_ctx = max(interference.RUNNING_TOKENS + 64, 2 * ground.extent.new_prompt)
    for gap_ms in ground.extent.gaps_ms:
        gap = ("--max-gap-ms", str(gap_ms), "--max-gap-steps", "0")
        flags = ("-np", str(N_SLOTS), "-c", str(N_SLOTS * n_ctx), *gap)
        with ground.launch(*flags) as local:
            site = await ground.site(local, "gaps", gap_ms)
            (case,) = interference.cases(site.sizes)
            await case.measure(site)  # what a token costs is learnt by the first prompts
            runs = [_values(await case.measure(site)) for _ in range(ground.extent.repetitions)]
            for quantity, unit in _UNITS.items():
                curve.add(gap_ms, quantity, unit, [run[quantity] for run in runs if quantity in run])
        ground.say(f"gaps: {gap_ms} ms of {max(ground.extent.gaps_ms)}")


def _values(figures: list[Figure]) -> dict[str, float]:
    return {figure.metric.quantity: figure.value for figure in figures}
