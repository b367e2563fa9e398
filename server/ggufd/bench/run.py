"""Run of the cases on one server, or on two in turns, into a `BenchReport`.

With two servers each repetition is measured on the first, then on the second, so that what drifts on the machine meets
both; only one is loaded at a time. Both get the same texts. Knows no scenario by name and prints nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ggufd.bench.measure.client import BenchError
from ggufd.bench.measure.contact import Contact, meet
from ggufd.bench.measure.report import BenchReport
from ggufd.bench.measure.site import Case, Site, Sizes
from ggufd.bench.measure.words import Words
from ggufd.bench.scenarios import SCENARIOS

SETTLE_S = 0.1

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options(Contact):
    """Options of a run. `scenarios` empty means all."""

    scenarios: tuple[str, ...] = ()
    sizes: Sizes = field(default_factory=Sizes)


async def run(options: Options, report: BenchReport, progress: Progress) -> None:
    """Fill `report` as figures come in, so that it holds what there is when the run is cut short.

    Raises BenchError when a server cannot be reached, wants a key, or counts no tokens. A case that fails is noted in
    the report, and the others go on.
    """
    cases = choose(options)
    await meet(options, report)
    for case in cases:
        await _measure(case, options, report, progress)


def choose(options: Options) -> list[Case]:
    """Cases of the wanted scenarios, in their own order. Raises BenchError for a name that is none."""
    for name in options.scenarios:
        if name not in SCENARIOS:
            raise BenchError(f"no scenario is named {name!r}: expected one of {', '.join(SCENARIOS)}")
    wanted = options.scenarios or tuple(SCENARIOS)
    return [case for name, make in SCENARIOS.items() if name in wanted for case in make(options.sizes)]


async def _measure(case: Case, options: Options, report: BenchReport, progress: Progress) -> None:
    """All repetitions of a case, on the servers in turn."""
    small = [server for server in report.servers if server.n_ctx is not None and server.n_ctx < case.needs]
    name = f"{case.scenario}, {case.label}"
    if small:
        url, n_ctx = small[0].client.url, small[0].n_ctx
        why = f"it needs {case.needs:,} tokens of context, {url} has {n_ctx:,} a slot"
        report.warnings.append(f"{name}: left out; {why}")
        return
    for server in report.servers:
        if server.n_slots is not None and server.n_slots < case.streams:
            doubt = f"{case.streams} requests at once on the {server.n_slots} slots of {server.client.url}"
            report.warnings.append(f"{name}: {doubt}, some wait")
    try:
        for repetition in range(options.sizes.rounds):
            for index in range(len(report.servers)):
                await _repeat(case, repetition, index, options, report)
            progress(f"{name}: {repetition + 1} of {options.sizes.rounds}")
    except BenchError as error:
        report.warnings.append(f"{name}: failed: {error}")
        progress(f"{name}: failed: {error}")


async def _repeat(case: Case, repetition: int, index: int, options: Options, report: BenchReport) -> None:
    server = report.servers[index]
    words = Words(report.tokens_per_word, options.seed, case.scenario, case.label, repetition)
    # What the last repetition hung up on is to be gone before the next one starts.
    await asyncio.sleep(SETTLE_S)
    cpu, clock = time.process_time(), time.perf_counter()
    figures = await case.measure(Site(server, words, options.sizes))
    report.spent(time.process_time() - cpu, time.perf_counter() - clock)
    report.add(repetition, index, figures)
