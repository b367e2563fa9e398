"""Run of the cases on one server, or on two in turns, into a `BenchReport`.

With two servers each repetition is measured on the first, then on the second, so that what drifts on the machine meets
both; only one is loaded at a time. Both get the same texts. Knows no scenario by name and prints nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ggufd.bench.measure.client import BenchError, Client
from ggufd.bench.measure.discovery import discover
from ggufd.bench.measure.report import BenchReport
from ggufd.bench.measure.site import Case, MeasuredServer, Site, Sizes
from ggufd.bench.measure.words import Words, calibrate
from ggufd.bench.scenarios import SCENARIOS

SETTLE_S = 0.1

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a run. `scenarios` empty means all; `max_slots` is for servers that do not tell their slots."""

    url: str
    seed: int
    against: str | None = None
    scenarios: tuple[str, ...] = ()
    sizes: Sizes = field(default_factory=Sizes)
    api_key: str | None = None
    other_api_key: str | None = None
    model: str | None = None
    max_slots: int | None = None
    timeout_s: float = 300.0


async def run(options: Options, report: BenchReport, progress: Progress) -> None:
    """Fill `report` as figures come in, so that it holds what there is when the run is cut short.

    Raises BenchError when a server cannot be reached, wants a key, or counts no tokens. A case that fails is noted in
    the report, and the others go on.
    """
    cases = choose(options)
    urls = [options.url] if options.against is None else [options.url, options.against]
    clients = [Client(url, api_key=options.api_key, timeout_s=options.timeout_s) for url in urls]
    if len({client.url for client in clients}) < len(clients):
        raise BenchError(f"{clients[0].url} was given twice: --against needs another server")
    clients[0].model = options.model
    servers = [await discover(client, options.max_slots, options.other_api_key) for client in clients]
    report.servers.extend(servers)
    for client in clients:
        await _warm_up(client, options.seed)
    # Both get the same texts, so one rate for both.
    report.tokens_per_word = await calibrate(clients[0], options.seed)
    report.warnings.extend(_doubts(servers))
    for case in cases:
        await _measure(case, options, report, progress)


def choose(options: Options) -> list[Case]:
    """Cases of the wanted scenarios, in their own order. Raises BenchError for a name that is none."""
    for name in options.scenarios:
        if name not in SCENARIOS:
            raise BenchError(f"no scenario is named {name!r}: expected one of {', '.join(SCENARIOS)}")
    wanted = options.scenarios or tuple(SCENARIOS)
    return [case for name, make in SCENARIOS.items() if name in wanted for case in make(options.sizes)]


async def _warm_up(client: Client, seed: int) -> None:
    """One short completion that is not counted."""
    await client.complete(Words(1.3, seed, "warm-up").text(16), 16)


def _doubts(servers: Sequence[MeasuredServer]) -> list[str]:
    """Warnings about differences that make the two servers hard to compare."""
    if len(servers) < 2:
        return []
    one, two = servers
    doubts = []
    for what, a, b in (("slots", one.n_slots, two.n_slots), ("tokens of context a slot", one.n_ctx, two.n_ctx)):
        if a != b and a is not None and b is not None:
            doubts.append(f"the servers differ in {what}: {a:,} and {b:,}")
    return doubts


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
