"""The collector's task: when it looks, and that it never misses who comes while it is about to end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ggufd.api.live.collector import Collector
from ggufd.api.services.adapters import AdapterScales
from ggufd.api.services.services import Services
from ggufd.api.services.settings import ApiConfig
from ggufd.engine.messages.reports import LiveState
from ggufd.errors import EngineDown
from tests.support.fakes.fake_engine import FakeEngine, FakeState, FakeText
from tests.support.virtual_time import virtual_time

INTERVAL_S = 0.06


class CountedEngine(FakeEngine):
    """Counts how often it was asked; `answers` holds its answers back while it is clear."""

    def __init__(self) -> None:
        super().__init__()
        self.n_asked = 0
        self.answers = asyncio.Event()
        self.answers.set()

    async def live_state(self) -> LiveState:
        self.n_asked += 1
        await self.answers.wait()
        return await super().live_state()


@asynccontextmanager
async def collecting(engine: FakeEngine) -> AsyncIterator[Collector]:
    config = ApiConfig("fake-model")
    services = Services(engine, FakeText(), config, AdapterScales(config))
    with virtual_time():
        collector = Collector(lambda: services, INTERVAL_S)
        collector.serve(engine)
        yield collector
        await collector.close()


async def test_it_looks_while_a_viewer_is_there_and_no_longer() -> None:
    engine = CountedEngine()
    async with collecting(engine) as collector:
        with collector.viewer():
            for _ in range(3):
                await asyncio.wait_for(collector.next_tick(), 2)
        await asyncio.sleep(4 * INTERVAL_S)
        n_asked = engine.n_asked
        await asyncio.sleep(4 * INTERVAL_S)
        assert engine.n_asked == n_asked


async def test_a_viewer_who_comes_as_it_is_about_to_end_is_served() -> None:
    """At any moment of its last second."""
    for part in range(8):
        async with collecting(CountedEngine()) as collector:
            collector.wake()
            await asyncio.sleep(part * INTERVAL_S / 6)
            with collector.viewer():
                for _ in range(4):
                    await asyncio.wait_for(collector.next_tick(), 2)


async def test_a_request_keeps_the_history_going_and_what_it_had_is_told() -> None:
    engine = CountedEngine()
    async with collecting(engine) as collector:
        engine.open.add(1)
        collector.wake()
        await asyncio.sleep(5 * INTERVAL_S)
        assert collector.history.n_rows >= 3
        engine.open.clear()
        await asyncio.sleep(4 * INTERVAL_S)
        n_rows = collector.history.n_rows
        await asyncio.sleep(4 * INTERVAL_S)
        assert collector.history.n_rows == n_rows


async def test_an_engine_in_a_long_step_is_asked_once() -> None:
    engine = CountedEngine()
    async with collecting(engine) as collector:
        with collector.viewer():
            await collector.next_tick()
            engine.answers.clear()
            n_asked = engine.n_asked
            for _ in range(2):
                await asyncio.wait_for(collector.next_tick(), 3)
            assert engine.n_asked == n_asked + 1
            assert collector.state is not None
            rows = list(collector.history.since(0, 0.0))
            assert rows[-1].written is None
            engine.answers.set()


async def test_an_engine_that_cannot_be_asked_is_no_end() -> None:
    engine = CountedEngine()
    async with collecting(engine) as collector:
        with collector.viewer():
            await collector.next_tick()
            engine.live_error = EngineDown("gone")
            await collector.next_tick()
            assert collector.state is None
            engine.live_error = None
            await collector.next_tick()
            assert collector.state is not None


async def test_a_sleeping_engine_is_not_asked() -> None:
    engine = CountedEngine()
    engine.state = FakeState.SLEEPING
    async with collecting(engine) as collector:
        with collector.viewer():
            for _ in range(3):
                await collector.next_tick()
    assert engine.n_asked == 0


async def test_states_are_events_of_the_engine_that_is_served() -> None:
    engine, other = FakeEngine(), FakeEngine()
    async with collecting(engine) as collector:
        for state in (FakeState.SLEEPING, FakeState.WAKING, FakeState.READY, FakeState.DRAINING, FakeState.READY):
            engine.enter(state)
        collector.serve(other)
        engine.enter(FakeState.SLEEPING)
        kinds = [one.kind for one in collector.recent.events(0, 0.0)]
    assert kinds == ["sleeping", "waking", "ready", "draining", "resumed", "load"]
