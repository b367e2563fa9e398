"""The client: requests, refusals, deaths and restarts; first over a thread, then over a real process and model."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from ggufd.engine.client import client as client_module
from ggufd.engine.client import stream as stream_module
from ggufd.engine.client import supervisor
from ggufd.engine.client.client import EngineClient
from ggufd.engine.client.state import EngineState
from ggufd.engine.client.stream import RequestStream
from ggufd.engine.messages.config import EngineConfig
from ggufd.engine.messages.events import Admitted, FinishReason, Output, Queued
from ggufd.engine.messages.reports import LimitUse, LoadFailed, LoadProgress, LogLine, Stats, UseElsewhere
from ggufd.engine.messages.requests import EngineRequest
from ggufd.errors import (
    Draining,
    EngineDown,
    EngineFailure,
    InvalidRequest,
    ModelError,
    QueueFull,
    QueueTimeout,
    TooManyRequests,
)
from ggufd.keys.principal import BACKGROUND, Principal
from ggufd.keys.ring import Limits
from ggufd.llama.params import ContextParams, ModelParams
from ggufd.processes.child import Child
from tests.support.fakes.fake_llama import (
    DeadLink,
    InprocSpawn,
    configure,
    inproc_client,
    link_of,
    make_request,
    run_alone,
    soon,
    spawn_with,
)

WAIT_S = 60.0


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.002)


async def read(stream: RequestStream) -> tuple[str, list[Any]]:
    """Text of choice 0 and all events of a stream."""
    events = [event async for event in stream]
    return "".join(event.text for event in events if isinstance(event, Output) and event.index == 0), events


def request_of(client: EngineClient, prompt: bytes = b"Hello", **changes: Any) -> EngineRequest:
    return make_request(client.new_request_id(), prompt, **changes)


@pytest.fixture
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Awaitable[EngineClient]]]:
    """Makes started clients and stops them."""
    made: list[EngineClient] = []

    async def start(spawn: InprocSpawn | None = None, **changes: Any) -> EngineClient:
        client = inproc_client(spawn, **changes)
        made.append(client)
        client.start()
        async with asyncio.timeout(WAIT_S):
            await client.wait_ready()
        return client

    yield start
    for client in made:
        if isinstance(spawn := client._supervisor._process.spawn, InprocSpawn):
            spawn.resume()
        await client.stop()


Make = Callable[..., Awaitable[EngineClient]]


# --- over a thread ----------------------------------------------------------------------------------------------------


async def test_a_request_says_what_the_engine_says(make: Make) -> None:
    client = await make()
    assert client.state is EngineState.READY
    assert client.ready is not None
    assert client.ready.n_slots == 4
    request = request_of(client)
    async with client.submit(request) as stream:
        text, events = await read(stream)
    assert text == run_alone(request).texts[0]
    assert isinstance(events[0], Admitted)
    assert isinstance(events[-1], Output)
    assert events[-1].finish is not None
    assert stream.is_done
    assert (client.n_running, client.n_waiting) == (0, 0)


async def test_many_requests_at_once_each_get_their_own(make: Make) -> None:
    client = await make(n_slots=3)
    requests = [request_of(client, bytes([65 + i]) * (i + 1), n=1 + i % 2, seed=3) for i in range(12)]

    async def run(request: EngineRequest) -> str:
        async with client.submit(request) as stream:
            return (await read(stream))[0]

    texts = await asyncio.gather(*(run(request) for request in requests))
    assert texts == [run_alone(request).texts[0] for request in requests]


async def test_take_gives_all_that_is_there(make: Make) -> None:
    client = await make()
    request = request_of(client, n=2)
    async with client.submit(request) as stream:
        await client.wait_idle()
        events = await stream.take()
        assert sum(1 for event in events if isinstance(event, Output) and event.finish) == 2
        assert await stream.take() == []


async def test_a_key_may_have_only_so_many_requests_waiting(make: Make) -> None:
    spawn = InprocSpawn(n_slots=2)
    client = await make(spawn)
    spawn.pause()
    limits = Limits(max_running=1, max_waiting=1)
    streams = [client.submit(request_of(client, account="a", limits=limits)) for _ in range(2)]
    with pytest.raises(TooManyRequests) as refusal:
        client.submit(request_of(client, account="a", limits=limits))
    assert refusal.value.retry_after_s >= 1
    streams.append(client.submit(request_of(client, account="b", limits=limits)))
    spawn.resume()
    for stream in streams:
        assert (await read(stream))[0]
    async with client.submit(request_of(client, account="a", limits=limits)) as stream:
        assert (await read(stream))[0]


async def test_what_a_key_holds_elsewhere_keeps_it_waiting_here_until_it_is_told_or_nothing_is(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await make(n_slots=2)
    limits = Limits(max_running=1)
    for ends in ("told", "silent"):
        monkeypatch.setattr(client_module, "_ELSEWHERE_S", WAIT_S if ends == "told" else 0.2)
        client.count_elsewhere([UseElsewhere("a", 0.0, 0, 1)])
        held = client.submit(request_of(client, account="a", limits=limits))
        async with client.submit(request_of(client, account="b", limits=limits)) as stream:
            assert (await read(stream))[0]
        assert ends == "silent" or not held.is_admitted
        assert client.limit_use() == [LimitUse("a", 0.0, 1, 1)] or ends == "silent"
        if ends == "told":
            client.count_elsewhere([])
        assert (await read(held))[0]


async def test_a_key_waits_when_it_has_used_its_tokens_a_minute(make: Make) -> None:
    client = await make(InprocSpawn(n_ctx=4096))
    limits = Limits(tokens_per_minute=600)
    request = request_of(client, b"x" * 500, max_tokens=200, ignore_eos=True, account="a", limits=limits)
    async with client.submit(request) as stream:
        await read(stream)
    with pytest.raises(TooManyRequests) as refusal:
        client.submit(request_of(client, account="a", limits=limits))
    # 100 tokens too many at 10 tokens a second; some characters of the answer may be incomplete.
    assert 8 < refusal.value.retry_after_s <= 10
    async with client.submit(request_of(client, account="b", limits=limits)) as stream:
        assert (await read(stream))[0]


async def test_a_request_that_has_no_time_to_wait_is_refused_before_anything_is_said(make: Make) -> None:
    client = await make(InprocSpawn(step_s=0.005, n_slots=1, n_ctx=4096))
    first = request_of(client, max_tokens=3000, ignore_eos=True)
    async with client.submit(first) as running:
        while not any(isinstance(event, Output) for event in await running.take()):
            pass
        await asyncio.sleep(0.1)
        async with client.submit(request_of(client, timeout_s=0.5)) as stream:
            with pytest.raises(QueueTimeout) as refusal:
                await stream.placed()
        assert refusal.value.param == "timeout"
        async with client.submit(request_of(client, timeout_s=500.0, report_queue=True)) as stream:
            await stream.placed()
            (queued,) = await stream.take()
            assert isinstance(queued, Queued)
            entries = (await client.reports.queue_state()).entries
            assert [entry.turn and entry.turn.position for entry in entries] == [None, 1]


async def test_leaving_early_aborts_in_the_engine(make: Make) -> None:
    client = await make(InprocSpawn(step_s=0.002, n_ctx=4096))
    request = request_of(client, max_tokens=None, ignore_eos=True)
    async with client.submit(request) as stream:
        async for event in stream:
            if isinstance(event, Output):
                break
    assert (client.n_running, client.n_waiting) == (0, 0)
    stats = await client.reports.stats()
    assert stats.running == 0
    assert stats.generated_tokens < 1000


async def test_a_sequence_ends_on_request_and_its_siblings_go_on(make: Make) -> None:
    client = await make(InprocSpawn(step_s=0.002, n_ctx=4096, n_slots=2))
    outputs: dict[int, list[Output]] = {0: [], 1: []}
    async with client.submit(request_of(client, n=2, max_tokens=60, ignore_eos=True)) as stream:
        async for event in stream:
            if isinstance(event, Output):
                outputs[event.index].append(event)
                if event.index == 1 and len(outputs[1]) == 3:
                    stream.finish(1)
    (whole, ended) = (said[-1].finish for said in outputs.values())
    assert whole is not None
    assert ended is not None
    assert (whole.reason, whole.usage.completion_tokens) == (FinishReason.LENGTH, 60)
    assert (ended.reason, ended.stop) == (FinishReason.STOP, None)
    assert 3 <= ended.usage.completion_tokens == sum(len(output.tokens) for output in outputs[1]) < 60
    stream.finish(1)
    assert (client.n_running, (await client.reports.stats()).running) == (0, 0)


async def test_a_cancelled_caller_aborts_too(make: Make) -> None:
    client = await make(InprocSpawn(step_s=0.002, n_ctx=4096))

    async def run() -> None:
        async with client.submit(request_of(client, max_tokens=None, ignore_eos=True)) as stream:
            await read(stream)

    task = asyncio.create_task(run())
    await until(lambda: client.n_running == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await client.reports.stats()).running == 0


async def test_an_abort_wakes_who_reads(make: Make) -> None:
    client = await make(InprocSpawn(step_s=0.002, n_ctx=4096))
    stream = client.submit(request_of(client, max_tokens=None, ignore_eos=True))
    reader = asyncio.create_task(read(stream))
    await until(lambda: stream.is_admitted)
    stream.abort()
    async with asyncio.timeout(WAIT_S):
        await reader


@pytest.mark.parametrize(
    ("changes", "error"), [({"prompt": b""}, InvalidRequest), ({"prompt": b"x" * 256}, InvalidRequest)]
)
async def test_what_the_engine_refuses_is_raised(make: Make, changes: dict[str, Any], error: type[Exception]) -> None:
    client = await make()
    async with client.submit(request_of(client, **changes)) as stream:
        with pytest.raises(error):
            await read(stream)
    assert client.n_waiting == 0


async def test_a_failed_decode_is_raised_and_the_next_request_served(make: Make) -> None:
    spawn = InprocSpawn()
    client = await make(spawn)
    spawn.decoders[0].bad_slots = {0, 1, 2, 3}
    async with client.submit(request_of(client)) as stream:
        with pytest.raises(EngineFailure, match="llama_decode failed"):
            await read(stream)
    spawn.decoders[0].bad_slots = set()
    async with client.submit(request_of(client)) as stream:
        assert (await read(stream))[0]


async def test_the_queue_is_full_exactly_at_its_capacity(make: Make) -> None:
    spawn = InprocSpawn(n_slots=2)
    client = await make(spawn, max_queue=3)
    spawn.pause()
    streams = [client.submit(request_of(client)) for _ in range(5)]
    assert client.is_full
    with pytest.raises(QueueFull) as caught:
        client.submit(request_of(client))
    assert caught.value.retry_after_s >= 1
    streams[4].abort()
    streams[4] = client.submit(request_of(client))
    with pytest.raises(QueueFull):
        client.submit(request_of(client))
    spawn.resume()
    texts = [(await read(stream))[0] for stream in streams]
    assert len(set(texts)) == 1
    assert texts[0]


async def test_in_a_full_queue_whoever_has_little_takes_a_place_of_whoever_has_much(make: Make) -> None:
    spawn = InprocSpawn(n_slots=1)
    client = await make(spawn, max_queue=3)
    spawn.pause()
    *_, newest = heavy = [client.submit(request_of(client, account="heavy")) for _ in range(4)]
    light = client.submit(request_of(client, account="light"))
    with pytest.raises(
        QueueFull, match=r"you had most; somebody else has this one now: 4 requests are waiting"
    ) as told:
        await read(newest)
    assert told.value.retry_after_s >= 1
    with pytest.raises(QueueFull, match="the queue is full: 4 requests"):
        client.submit(request_of(client, account="heavy"))
    spawn.resume()
    assert len({(await read(stream))[0] for stream in (*heavy[:3], light)}) == 1


async def test_the_queue_is_full_when_all_slots_run(make: Make) -> None:
    spawn = InprocSpawn(n_slots=2, n_ctx=4096, step_s=0.002)
    client = await make(spawn, max_queue=1)
    running = [client.submit(request_of(client, max_tokens=None, ignore_eos=True)) for _ in range(2)]
    await until(lambda: client.n_running == 2)
    waiting = client.submit(request_of(client))
    with pytest.raises(QueueFull):
        client.submit(request_of(client))
    assert (client.n_running, client.n_waiting) == (2, 1)
    running[0].abort()
    assert (await read(waiting))[0]
    running[1].abort()


async def test_waiting_too_long_is_raised(make: Make) -> None:
    client = await make(InprocSpawn(n_slots=1, n_ctx=4096, step_s=0.002, max_queue_wait_s=0.05))
    busy = client.submit(request_of(client, max_tokens=None, ignore_eos=True))
    await until(lambda: client.n_running == 1)
    async with client.submit(request_of(client)) as stream:
        with pytest.raises(QueueTimeout):
            await read(stream)
    busy.abort()


async def test_what_the_engine_refuses_names_its_field(make: Make) -> None:
    client = await make()
    async with client.submit(make_request(client.new_request_id(), [99_999])) as stream:
        with pytest.raises(InvalidRequest) as refusal:
            await read(stream)
    assert refusal.value.param == "prompt"


async def test_a_draining_client_takes_nothing_new_and_lets_the_rest_end(make: Make) -> None:
    client = await make(InprocSpawn(step_s=0.001))
    stream = client.submit(request_of(client))
    client.drain()
    assert client.state is EngineState.DRAINING
    with pytest.raises(Draining):
        client.submit(request_of(client))
    assert (await read(stream))[0]
    async with asyncio.timeout(WAIT_S):
        await client.wait_idle()


async def test_a_draining_client_does_not_wait_for_background_work(make: Make) -> None:
    client = await make(InprocSpawn(n_ctx=4096, step_s=0.002))
    line = client.submit(
        request_of(client, max_tokens=None, ignore_eos=True, principal=Principal("alice", account=BACKGROUND))
    )
    await until(lambda: line.is_admitted)
    assert (client.n_running, client.n_waiting) == (0, 0)
    client.drain()
    with pytest.raises(Draining):
        await read(line)
    async with asyncio.timeout(WAIT_S):
        await client.wait_idle()


async def test_stopping_ends_what_is_open(make: Make) -> None:
    spawn = InprocSpawn(n_ctx=4096, step_s=0.002)
    client = await make(spawn)
    stream = client.submit(request_of(client, max_tokens=None, ignore_eos=True))
    await until(lambda: stream.is_admitted)
    reader = asyncio.create_task(read(stream))
    await client.stop()
    with pytest.raises(Draining):
        await reader
    assert spawn.links[0].join(WAIT_S)
    await client.stop()


async def test_stats_are_of_the_engine(make: Make) -> None:
    client = await make(n_slots=3)
    async with client.submit(request_of(client, max_tokens=7, ignore_eos=True)) as stream:
        await read(stream)
    stats = await client.reports.stats()
    assert isinstance(stats, Stats)
    assert (stats.running, stats.waiting, stats.generated_tokens, len(stats.slots)) == (0, 0, 7, 3)


async def test_nobody_waits_for_stats_of_an_engine_that_is_stopped(make: Make) -> None:
    spawn = InprocSpawn(n_ctx=4096)
    client = await make(spawn)
    stream = client.submit(request_of(client, max_tokens=None, ignore_eos=True))
    await until(lambda: stream.is_admitted)
    spawn.pause()
    stopping = asyncio.create_task(client.stop())
    await asyncio.sleep(0)
    # The engine reads no further than the Shutdown before this.
    asking = asyncio.create_task(client.reports.stats())
    await asyncio.sleep(0)
    spawn.resume()
    await stopping
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(EngineDown, match="has stopped"):
            await asking


async def test_who_asks_a_stopped_engine_is_told(make: Make) -> None:
    client = await make()
    await client.stop()
    async with asyncio.timeout(WAIT_S):
        for ask in (client.reports.stats, client.reports.steps, client.reports.queue_state):
            with pytest.raises(EngineDown, match="has stopped"):
                await ask()


async def test_what_is_tried_again_with_the_same_settings_has_the_whole_gpu_to_choose_from(make: Make) -> None:
    client = await make()
    configure(client, vram_limit=0)
    assert client.renewed().config == replace(client.config, vram_limit=None)


# --- death and restart ------------------------------------------------------------------------------------------------


async def test_a_death_fails_what_is_open_and_the_engine_comes_back(make: Make) -> None:
    spawn = InprocSpawn(n_slots=1, n_ctx=4096, step_s=0.002)
    client = await make(spawn)
    running = client.submit(request_of(client, max_tokens=None, ignore_eos=True))
    waiting = client.submit(request_of(client))
    await until(lambda: running.is_admitted)
    spawn.links[0].kill()
    for stream in (running, waiting):
        with pytest.raises(EngineDown, match="signal 9"):
            await read(stream)
    assert client.state is EngineState.RESTARTING
    with pytest.raises(EngineDown, match="started again") as down:
        client.submit(request_of(client))
    assert down.value.retry_after_s == client._supervisor.condition.load_s
    with pytest.raises(EngineDown):
        await client.reports.stats()
    await until(lambda: client.state is EngineState.READY)
    assert len(spawn.links) == 2
    async with client.submit(request_of(client)) as stream:
        assert (await read(stream))[0]


async def test_an_engine_that_dies_again_and_again_is_given_up(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "RESTARTS", replace(supervisor.RESTARTS, first_s=0.0))
    spawn = InprocSpawn()
    client = await make(spawn)
    for n in range(1, 7):
        assert len(spawn.links) == n
        spawn.links[-1].kill()
        await until(lambda n=n: client.state is EngineState.FAILED or len(spawn.links) == n + 1)
        if client.state is not EngineState.FAILED:
            await until(lambda: client.state is EngineState.READY)
    assert client.state is EngineState.FAILED
    assert len(spawn.links) == 6
    with pytest.raises(EngineDown, match="given up"):
        client.submit(request_of(client))


async def test_deaths_long_after_each_other_do_not_add_up(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "RESTARTS", replace(supervisor.RESTARTS, first_s=0.0, healthy_s=0.0))
    spawn = InprocSpawn()
    client = await make(spawn)
    for n in range(1, 9):
        spawn.links[-1].kill()
        await until(lambda n=n: len(spawn.links) == n + 1)
        await until(lambda: client.state is EngineState.READY)


async def test_one_that_cannot_be_loaded_again_is_given_up_however_long_it_had_been_well(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "RESTARTS", replace(supervisor.RESTARTS, first_s=0.0, healthy_s=0.0))
    spawn = InprocSpawn()
    client = await make(spawn)
    spawn_with(client, lambda *told: FailingSpawn(LoadFailed("no such file"))(*told))
    spawn.links[0].kill()
    await until(lambda: client.state is EngineState.FAILED)
    assert client.trouble == "no such file 6 times in a row"
    with pytest.raises(EngineDown, match="given up: no such file"):
        client.submit(request_of(client))


def test_restarts_back_off() -> None:
    assert [supervisor.RESTARTS.delay_s(n) for n in range(5)] == [0.0, 0.5, 1.5, 3.5, 7.5]


async def test_one_who_does_not_read_is_dropped_and_the_engine_waits_for_nobody(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stream_module, "_MAX_UNREAD", 50)
    client = await make(InprocSpawn(n_ctx=4096))
    unread = client.submit(request_of(client, max_tokens=None, ignore_eos=True))
    async with client.submit(request_of(client, max_tokens=200, ignore_eos=True)) as stream:
        assert (await read(stream))[1][-1].finish.usage.completion_tokens == 200
    await until(lambda: unread.is_done)
    assert (await client.reports.stats()).running == 0
    assert len(await unread.take()) == 50
    with pytest.raises(EngineFailure, match="read too slowly"):
        await unread.take()
    # What stands behind its event in the same message is for others.
    assert "could not be handled" not in caplog.text


@pytest.mark.timed
async def test_an_engine_that_hangs_is_ended_and_everybody_told(make: Make) -> None:
    spawn = InprocSpawn(n_slots=1, n_ctx=4096, step_s=0.002)
    client = await make(spawn, step_timeout_s=0.3)
    running = client.submit(request_of(client, max_tokens=None, ignore_eos=True))
    waiting = client.submit(request_of(client))
    await until(lambda: running.is_admitted)
    spawn.pause()
    started_s = time.monotonic()
    # The step that runs ends, what came meanwhile is answered, and the next step hangs.
    await asyncio.sleep(0.05)
    asking = asyncio.create_task(client.reports.stats())
    for stream in (running, waiting):
        with pytest.raises(EngineDown, match="no sign of life"):
            await read(stream)
    assert 0.3 <= time.monotonic() - started_s < 0.3 + 1
    with pytest.raises(EngineDown, match="no sign of life"):
        await asking
    # A thread is not killed: it ends with the step that hangs.
    assert client.state is EngineState.RESTARTING
    spawn.resume()
    await until(lambda: client.state is EngineState.READY)
    async with client.submit(request_of(client)) as stream:
        assert (await read(stream))[0]


async def test_an_engine_with_long_steps_is_left_alone(make: Make) -> None:
    client = await make(InprocSpawn(n_slots=1, step_s=0.2), step_timeout_s=0.5)
    async with client.submit(request_of(client, prompt=b"x" * 200, max_tokens=2)) as stream:
        assert (await read(stream))[0]
    await asyncio.sleep(0.7)
    assert client.state is EngineState.READY


async def test_a_model_that_cannot_be_loaded_again_is_tried_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory may be short just now, since somebody else took it."""
    monkeypatch.setattr(supervisor, "RESTARTS", replace(supervisor.RESTARTS, first_s=0.0))
    spawn = InprocSpawn()
    client = await make(spawn)
    spawns = [FailingSpawn(LoadFailed("no memory")), FailingSpawn(LoadFailed("no memory")), spawn]
    spawn_with(client, lambda *told: spawns.pop(0)(*told))
    spawn.links[0].kill()
    await until(lambda: client.state is EngineState.READY and not spawns)
    async with client.submit(request_of(client)) as stream:
        assert (await read(stream))[0]


class FailingSpawn(DeadLink):
    """An engine that says what it is told to, and ends."""

    def __init__(self, *events: Any, code: int = 0) -> None:
        self.events, self.code = list(events), code

    def __call__(self, on_message: Any, on_exit: Any) -> FailingSpawn:
        if self.events:
            soon(on_message, self.events)
        soon(on_exit, self.code, "")
        return self


async def test_a_model_that_cannot_be_loaded_is_a_model_error() -> None:
    client = inproc_client(FailingSpawn(LoadFailed("no such file")))  # type: ignore[arg-type]
    assert client.state is EngineState.LOADING
    client.start()
    with pytest.raises(ModelError, match="no such file"):
        await client.wait_ready()
    assert client.state is EngineState.FAILED
    await client.stop()


async def test_an_engine_that_dies_while_it_loads_is_not_started_again() -> None:
    client = inproc_client(FailingSpawn(code=-9))  # type: ignore[arg-type]
    client.start()
    with pytest.raises(ModelError, match=r"signal 9.* while loading the model; is there enough memory\?$"):
        await client.wait_ready()
    assert client.state is EngineState.FAILED
    await client.stop()


async def test_an_engine_that_llama_cpp_ends_while_it_loads_does_not_blame_the_memory() -> None:
    client = inproc_client(FailingSpawn(code=-6))  # type: ignore[arg-type]
    client.start()
    with pytest.raises(ModelError, match=r"\(signal 6\) while loading the model$"):
        await client.wait_ready()
    await client.stop()


async def test_loading_tells_its_progress() -> None:
    seen: list[float] = []
    spawn: Any = FailingSpawn(LoadProgress(0.5), LoadProgress(1.0), LoadFailed("done"))
    client = EngineClient(inproc_client().config, seen.append, spawn)
    client.start()
    with pytest.raises(EngineDown, match="being loaded"):
        client.submit(request_of(client))
    with pytest.raises(ModelError):
        await client.wait_ready()
    assert seen == [0.5, 1.0]
    await client.stop()


# --- over a real process and model ------------------------------------------------------------------------------------


def real_client(path: Path, **changes: Any) -> EngineClient:
    context = ContextParams(n_ctx=256, n_slots=2, n_batch=64, n_ubatch=64, n_threads=1, flash_attn="off")
    return EngineClient(EngineConfig(ModelParams(str(path)), context, **changes))


def pid_of(client: EngineClient) -> int:
    link = link_of(client)
    assert isinstance(link, Child)
    return link.pid


@pytest.mark.e2e
async def test_a_real_engine_serves_dies_comes_back_and_leaves_nothing(tiny_model: Path) -> None:
    client = real_client(tiny_model)
    client.start()
    async with asyncio.timeout(WAIT_S):
        ready = await client.wait_ready()
    assert (ready.n_slots, ready.n_ctx, ready.model.name, ready.reuse) == (2, 256, "tiny", "any")
    assert ready.memory_bytes > 0

    async with client.submit(request_of(client, max_tokens=20, ignore_eos=True)) as stream:
        first, events = await read(stream)
    assert events[-1].finish.reason is FinishReason.LENGTH
    assert events[-1].finish.usage.completion_tokens == 20

    async with client.submit(request_of(client, max_tokens=None, ignore_eos=True)) as stream:
        await anext(stream)
    assert (await client.reports.stats()).running == 0

    first_pid = pid_of(client)
    running = client.submit(request_of(client, n=2, max_tokens=None, ignore_eos=True))
    waiting = client.submit(request_of(client, max_tokens=None, ignore_eos=True))
    os.kill(first_pid, signal.SIGKILL)
    for stream in (running, waiting):
        with pytest.raises(EngineDown, match="signal 9"):
            await read(stream)
    await until(lambda: client.state is EngineState.READY)
    second_pid = pid_of(client)
    assert second_pid != first_pid

    async with client.submit(request_of(client, max_tokens=20, ignore_eos=True)) as stream:
        assert (await read(stream))[0] == first
    await client.stop()
    assert not psutil.pid_exists(first_pid)
    assert not psutil.pid_exists(second_pid)


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.e2e
@pytest.mark.parametrize("name", ["SIGSTOP", "SIGSEGV", "SIGABRT"])
@pytest.mark.timed
async def test_however_a_real_engine_ends_everybody_is_told_within_a_second(tiny_model: Path, name: str) -> None:
    client = real_client(tiny_model, step_timeout_s=0.5)
    client.start()
    async with asyncio.timeout(WAIT_S):
        await client.wait_ready()
    pid = pid_of(client)
    streams = [client.submit(request_of(client, max_tokens=None, ignore_eos=True)) for _ in range(4)]
    await until(lambda: client.n_running == 2)
    os.kill(pid, getattr(signal, name))
    started_s = time.monotonic()
    for stream in streams:
        with pytest.raises(EngineDown, match="is lost"):
            await read(stream)
    limit_s = client._supervisor._watchdog.limit_s if name == "SIGSTOP" else 0
    assert time.monotonic() - started_s < limit_s + 1
    await until(lambda: client.state is EngineState.READY)
    assert not psutil.pid_exists(pid)
    async with client.submit(request_of(client, max_tokens=3, ignore_eos=True)) as stream:
        await read(stream)
    await client.stop()


@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["missing", "text"])
async def test_a_real_engine_says_in_one_line_why_it_cannot_load(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.gguf"
    if kind == "text":
        path.write_text("this is no model\n" * 100)
    client = real_client(path)
    client.start()
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(ModelError) as caught:
            await client.wait_ready()
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) > len(f"llama.cpp could not load {path}: ")
    await client.stop()


@pytest.mark.e2e
async def test_a_real_engine_can_be_stopped_while_it_loads(tiny_model: Path) -> None:
    client = real_client(tiny_model)
    client.start()
    pid = pid_of(client)
    await client.stop()
    assert not psutil.pid_exists(pid)


async def test_what_the_engine_logs_is_logged_under_its_own_name(caplog: pytest.LogCaptureFixture) -> None:
    spawn: Any = FailingSpawn(
        LogLine(30, "a sequence was moved", "ggufd.engine.slots.prefix_cache"), LoadFailed("done")
    )
    client = EngineClient(inproc_client().config, spawn=spawn)
    client.start()
    with pytest.raises(ModelError):
        await client.wait_ready()
    assert ("ggufd.engine.slots.prefix_cache", 30, "a sequence was moved") in caplog.record_tuples
    await client.stop()
