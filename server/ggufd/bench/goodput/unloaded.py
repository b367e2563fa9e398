"""Servers without load, and the objective that follows from the faster one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ggufd.bench.goodput.attempt import request
from ggufd.bench.goodput.load import LoadDraw, LoadMix, RequestKind
from ggufd.bench.goodput.objective import Objective, Outcome
from ggufd.bench.measure.client import BenchError, Client

TTFT_TIMES = 3
ITL_TIMES = 25
"""The objective, over what the faster server does without load.

TTFT is that of the kind that waits longest alone, so others may wait longer than so many times. A step of 16 streams
takes about ten times as long as one of a lone stream on a CPU, and prompts are computed between.
"""

TRIES = 3
"""Requests of each kind, one after the other; those of the chat are turns of one."""


@dataclass(frozen=True, slots=True)
class Unloaded:
    """Requests of a server that had nothing else to do."""

    outcomes: Sequence[Outcome]

    @property
    def ttft_s(self) -> float:
        """Median TTFT of the kind that waits longest: an objective under it would be kept by no such request."""
        return max(statistics.median(self._of_kind(kind, "ttft_s")) for kind in RequestKind)

    @property
    def itl_p95_s(self) -> float | None:
        """Median over requests of the 95th percentile of ITL; None where text came in one piece."""
        found = [value for outcome in self.outcomes if (value := outcome.itl_p95_s) is not None]
        return statistics.median(found) if found else None

    def rate(self, mix: LoadMix) -> float:
        """Requests a second of the mix, one after the other."""
        kinds = mix.kinds(100)
        return len(kinds) / sum(statistics.mean(self._of_kind(kind, "seconds")) for kind in kinds)

    def _of_kind(self, kind: RequestKind, name: str) -> list[float]:
        return [getattr(outcome, name) for outcome in self.outcomes if outcome.kind is kind]


async def measure_unloaded(client: Client, draw: LoadDraw) -> Unloaded:
    """Ask one request after the other. Raises BenchError where one fails."""
    kinds = [kind for kind in RequestKind for _ in range(TRIES)]
    outcomes = [await request(client, draw, draw.arrival(i, kind), time.perf_counter()) for i, kind in enumerate(kinds)]
    for outcome in outcomes:
        if outcome.error:
            raise BenchError(f"without load, a {outcome.kind.value}: {outcome.error}")
    return Unloaded(outcomes)


def objective_of(unloaded: Sequence[Unloaded], ttft_s: float | None, itl_p95_s: float | None) -> Objective:
    """What was given, else so many times what the faster server does without load. Raises BenchError without gaps."""
    gaps = [gap for one in unloaded if (gap := one.itl_p95_s)]
    if itl_p95_s is None and not gaps:
        raise BenchError("no answer came in pieces, so there is no ITL to derive an objective from: give --itl-p95-ms")
    return Objective(
        TTFT_TIMES * min(one.ttft_s for one in unloaded) if ttft_s is None else ttft_s,
        ITL_TIMES * min(gaps) if itl_p95_s is None else itl_p95_s,
    )
