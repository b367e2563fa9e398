"""Run of the search on one server, or on two in turns: never both at once. Prints nothing.

At the same rate both get the same arrivals with the same texts; in a round, one rate differs from the next in its pace
and its words alone. Each server's search goes its own way; while it goes on, one rate on the one is followed by one
rate on the other, so that what drifts on the machine meets both.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from ggufd.bench.goodput.attempt import LoadCounts, play
from ggufd.bench.goodput.load import LoadDraw, LoadMix
from ggufd.bench.goodput.objective import KEPT_SHARE, Outcome, RateResult, RateRow
from ggufd.bench.goodput.report import GoodputReport, rate_line
from ggufd.bench.goodput.search import RateSearch
from ggufd.bench.goodput.unloaded import ITL_TIMES, TTFT_TIMES, Unloaded, measure_unloaded, objective_of
from ggufd.bench.measure.client import BenchError
from ggufd.bench.measure.contact import Contact, meet
from ggufd.bench.measure.site import MeasuredServer
from ggufd.bench.measure.table import number
from ggufd.bench.measure.words import Words

SETTLE_S = 0.1
GLANCE_S = 2.0
FIRST_SHARE = 0.75
"""The first rate, over that of requests one after the other on the slower server."""

LIGHT_CHATS = 3
LEAST_LIGHT = 20
"""Requests of the light user at a rate, at least: a share of fewer says little."""

FLOOD_TIMES = 3
"""The last rate, over the goodput, where a light user is watched."""


@dataclass(frozen=True, slots=True)
class GoodputOptions(Contact):
    """Options of a run. Where `other_api_key` is given, it is a light user's."""

    ttft_s: float | None = None
    itl_p95_s: float | None = None
    n_requests: int = 100
    rounds: int = 3
    first_rate: float | None = None
    factor: float = 1.5
    bisections: int = 3
    most_rate: float = 100.0
    light_rate: float = 0.2
    mix: LoadMix = field(default_factory=LoadMix)


class _Try(NamedTuple):
    """One rate to measure on one server; a flood is there for the light user's sake."""

    repetition: int
    side: int
    rate: float
    is_flood: bool = False

    @property
    def letter(self) -> str:
        return "AB"[self.side]


class GoodputRun:
    """A run, whose report holds what there is when it is cut short.

    `progress` gets a line for each rate, `glance` one now and then that the next may take the place of.
    """

    def __init__(
        self,
        options: GoodputOptions,
        report: GoodputReport,
        progress: Callable[[str], None],
        glance: Callable[[str], None],
    ) -> None:
        self._options = options
        self._report = report
        self._progress = progress
        self._glance = glance
        self._system = ""
        self._first_rate = 0.0

    async def run(self) -> None:
        """Find the objective, then the goodput, once a round. Raises BenchError when a server cannot be measured."""
        await meet(self._options, self._report)
        self._check_contexts()
        tokens_per_word = self._report.tokens_per_word
        self._system = Words(tokens_per_word, self._options.seed, "system").text(self._options.mix.system)
        self._set_objective([await self._unloaded(server) for server in self._report.servers])
        for repetition in range(self._options.rounds):
            lowest = await self._round(repetition)
            # Low rates take longest, and the next round need not begin all over.
            self._first_rate = max(self._first_rate, lowest / self._options.factor)

    def _check_contexts(self) -> None:
        needs = self._options.mix.needs
        for server in self._report.servers:
            if server.n_ctx is not None and server.n_ctx < needs:
                n_ctx = f"{server.client.url} has {server.n_ctx:,} a slot"
                raise BenchError(f"the load needs {needs:,} tokens of context, {n_ctx}; a smaller load is --quick")

    async def _unloaded(self, server: MeasuredServer) -> Unloaded:
        if server.other is not None:  # the light user's cache has the system prompt, too
            await server.other.complete(self._system, 1)
        one_chat = dataclasses.replace(self._options.mix, n_chats=1)
        return await measure_unloaded(server.client, self._draw(one_chat, ("unloaded",), ()))

    def _draw(self, mix: LoadMix, pattern: tuple[object, ...], texts: tuple[object, ...]) -> LoadDraw:
        return LoadDraw(mix, self._system, self._report.tokens_per_word, (self._options.seed, *pattern), texts)

    def _set_objective(self, unloaded: list[Unloaded]) -> None:
        options, report = self._options, self._report
        report.objective = objective_of(unloaded, options.ttft_s, options.itl_p95_s)
        report.basis = f"TTFT {_basis(options.ttft_s, TTFT_TIMES)}, ITL {_basis(options.itl_p95_s, ITL_TIMES)}"
        self._progress(report.objective_line)
        for letter, one in zip("AB", unloaded, strict=False):
            share = report.objective.share_kept(one.outcomes) or 0.0
            if share < KEPT_SHARE:
                report.warnings.append(f"{letter} kept the objective in {share:.0%} of its requests without load")
        slowest = FIRST_SHARE * min(one.rate(options.mix) for one in unloaded)
        self._first_rate = options.first_rate or float(f"{slowest:.2g}")
        first_s = options.n_requests / self._first_rate
        self._progress(f"first rate {number(self._first_rate)} requests/s: {number(first_s)} s on each server")

    async def _round(self, repetition: int) -> float:
        """Search on all servers; the lowest goodput."""
        options = self._options
        searches = [
            RateSearch(self._first_rate, options.factor, options.bisections, options.most_rate)
            for _ in self._report.servers
        ]
        try:
            while any(search.rate is not None for search in searches):
                for side, search in enumerate(searches):
                    if search.rate is not None:
                        search.tell(is_kept=await self._is_kept(_Try(repetition, side, search.rate)))
            if options.other_api_key is not None:
                for side, search in enumerate(searches):
                    rate = FLOOD_TIMES * (search.kept or self._first_rate)
                    await self._is_kept(_Try(repetition, side, rate, is_flood=True))
        finally:
            for side, search in enumerate(searches):
                self._conclude(repetition, side, search)
        return min(search.kept for search in searches)

    def _conclude(self, repetition: int, side: int, search: RateSearch) -> None:
        """Report what a search has found; nothing where it was cut short while it could still find a lower rate."""
        letter = "AB"[side]
        if search.kept == 0.0 and search.rate is not None:
            return
        self._report.add_goodput(repetition, side, search.kept)
        if search.kept == 0.0:
            self._report.warnings.append(f"{letter} kept the objective at no rate, down to {number(search.missed)}/s")
        elif search.missed == math.inf:
            self._report.warnings.append(f"{letter} kept every rate that was tried: its goodput may be higher")

    async def _is_kept(self, one: _Try) -> bool:
        """Measure one rate on one server."""
        assert self._report.objective is not None
        # What the last load left behind is to be gone before the next one starts.
        await asyncio.sleep(SETTLE_S)
        cpu, start = time.process_time(), time.perf_counter()
        outcomes, light = await self._watched(one, start)
        self._report.spent(time.process_time() - cpu, time.perf_counter() - start)
        result = RateResult(one.repetition, one.side, one.rate, start, outcomes, light)
        self._report.results.append(result)
        row = RateRow.of(result, self._report.objective)
        self._progress(rate_line(one.letter, row, len(outcomes)))
        if result.errors:
            said = f"{row.errors} requests failed, the first: {result.errors[0]}"
            self._report.warnings.append(f"{one.letter}, {number(one.rate)} requests/s: {said}")
        return row.is_kept

    async def _watched(self, one: _Try, start: float) -> tuple[list[Outcome], list[Outcome]]:
        counts = LoadCounts()
        watch = asyncio.create_task(self._watch(one, counts))
        try:
            return await self._load(one, start, counts)
        finally:
            watch.cancel()
            self._glance("")

    async def _watch(self, one: _Try, counts: LoadCounts) -> None:
        """Tell how far a load is, seldom enough to cost the servers nothing."""
        while True:
            await asyncio.sleep(GLANCE_S)
            now = f"{counts.sent} requests sent, {counts.sent - counts.over} of them not over"
            self._glance(f"{one.letter}, {number(one.rate)} requests/s: {now}")

    async def _load(self, one: _Try, start: float, counts: LoadCounts) -> tuple[list[Outcome], list[Outcome]]:
        """The requests of the load, and those of the light user beside it."""
        options, server = self._options, self._report.servers[one.side]
        texts, n = (f"{one.rate:g}", one.is_flood), options.n_requests
        draw = self._draw(options.mix, (one.repetition,), texts)
        if server.other is None:
            return await play(server.client, draw, draw.arrivals(n, one.rate), start, counts), []
        n = max(n, math.ceil(one.rate * LEAST_LIGHT / options.light_rate))
        n_light = max(LEAST_LIGHT, round(options.light_rate * n / one.rate))
        light_mix = dataclasses.replace(options.mix, documents=0.0, questions=0.0, n_chats=LIGHT_CHATS)
        light = self._draw(light_mix, (one.repetition, "light"), texts)
        return await asyncio.gather(
            play(server.client, draw, draw.arrivals(n, one.rate), start, counts),
            play(server.other, light, light.arrivals(n_light, options.light_rate), start, counts),
        )


def _basis(given: float | None, times: float) -> str:
    return "as given" if given is not None else f"{times} times the faster server's alone"
