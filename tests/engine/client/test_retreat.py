"""A model that does not fit on the GPU as it was planned: a new process with less, until one loads or none can."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from ggufd.engine import loader
from ggufd.engine.client import supervisor
from ggufd.engine.client.client import EngineClient
from ggufd.engine.client.retreat import Retreat
from ggufd.engine.client.state import EngineState
from ggufd.engine.loading.load_log import LoadLog
from ggufd.engine.loading.placing import Placed
from ggufd.engine.messages.config import EngineConfig
from ggufd.engine.messages.events import Output
from ggufd.engine.messages.reports import LoadFailed, Placing
from ggufd.errors import EngineDown, ModelError, ModelTooLarge
from ggufd.llama.model.system import DeviceMemory
from ggufd.llama.params import ContextParams, ModelParams
from tests.support.fakes.fake_llama import (
    DeadLink,
    InprocSpawn,
    configure,
    inproc_client,
    make_request,
    soon,
    spawn_with,
)

GIB = 1 << 30
WAIT_S = 30.0


class Gpu(DeadLink):
    """Engines whose loader wants `wanted` bytes, or what it may take; with `n_bytes` of memory there really are.

    One that gets too little says so, or with `dies` ends by a signal.
    """

    def __init__(self, wanted: int, n_bytes: int, *, dies: bool = False) -> None:
        self.wanted, self.n_bytes, self.dies = wanted, n_bytes, dies
        self.tries: list[int] = []
        self.alive = 0
        self._healthy = InprocSpawn()
        self.client = inproc_client(self._spawn)  # type: ignore[arg-type]

    def _spawn(self, on_message: Callable[[Any], None], on_exit: Callable[[int, str], None]) -> Any:
        limit = self.client.config.vram_limit
        taken = self.wanted if limit is None else min(limit, self.wanted)
        self.tries.append(taken)
        if taken == 0 and self.client.config.require_gpu:
            # As the loader does, before it reads the weights.
            soon(on_message, [LoadFailed("require_gpu is set, but no layer runs on a GPU")])
            soon(on_exit, 0, "")
            return self
        soon(on_message, [Placing(taken)])
        if taken <= self.n_bytes:
            return self._healthy(on_message, on_exit)
        if not self.dies:
            soon(on_message, [LoadFailed("failed to allocate CUDA0 buffer", is_too_large=True)])
        soon(on_exit, -6 if self.dies else 0, "")
        return self


async def ready(client: EngineClient) -> None:
    client.start()
    async with asyncio.timeout(WAIT_S):
        await client.wait_ready()


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Gpu]]:
    made: list[Gpu] = []

    def new(*args: Any, **changes: Any) -> Gpu:
        made.append(Gpu(*args, **changes))
        return made[-1]

    yield new
    for gpu in made:
        await gpu.client.stop()


@pytest.mark.parametrize("dies", [False, True])
async def test_less_is_tried_until_it_fits(
    make: Callable[..., Gpu], caplog: pytest.LogCaptureFixture, dies: bool
) -> None:
    gpu = make(10 * GIB, 7 * GIB, dies=dies)
    with caplog.at_level(logging.WARNING):
        await ready(gpu.client)
    assert gpu.tries[0] == 10 * GIB
    assert gpu.tries == sorted(gpu.tries, reverse=True)
    assert gpu.tries[-1] <= 7 * GIB
    assert caplog.text.count("did not fit on the GPU") == len(gpu.tries) - 1
    stream = gpu.client.submit(make_request(gpu.client.new_request_id(), b"Hello"))
    assert [event async for event in stream if isinstance(event, Output)]


async def test_in_the_end_it_is_the_cpu(make: Callable[..., Gpu]) -> None:
    gpu = make(10 * GIB, 0)
    await ready(gpu.client)
    assert gpu.tries[-1] == 0
    assert len(gpu.tries) == 5


@pytest.mark.parametrize(
    "events",
    [[LoadFailed("no way", is_too_large=True)], [Placing(GIB), LoadFailed("no way")]],
    ids=["told", "bad file"],
)
async def test_where_less_would_not_help_nothing_is_tried(make: Callable[..., Gpu], events: list[Any]) -> None:
    gpu = make(GIB, 0)

    def spawn(on_message: Callable[[Any], None], on_exit: Callable[[int, str], None]) -> Gpu:
        soon(on_message, events)
        soon(on_exit, 0, "")
        return gpu

    spawn_with(gpu.client, spawn)
    with pytest.raises(ModelError, match="no way"):
        await ready(gpu.client)
    assert gpu.client.state is EngineState.FAILED
    assert gpu.client.config.vram_limit is None


async def test_it_retreats_again_when_it_wakes_to_less(make: Callable[..., Gpu]) -> None:
    gpu = make(10 * GIB, 20 * GIB)
    await ready(gpu.client)
    gpu.n_bytes = 5 * GIB
    gpu._healthy.links[-1].kill()
    while len(gpu.tries) < 2 or gpu.client.state is not EngineState.READY:  # noqa: ASYNC110 - a state has no event
        await asyncio.sleep(0.01)
    assert gpu.tries[-1] <= 5 * GIB


class TestLater:
    """Another start of the engine, when the GPU's memory is not what it was."""

    async def asleep(self, gpu: Gpu) -> EngineClient:
        configure(gpu.client, sleep_idle_s=0.01)
        await ready(gpu.client)
        await until(gpu, EngineState.SLEEPING)
        return gpu.client

    async def test_after_a_crash_all_of_it_is_tried_first_again(self, make: Callable[..., Gpu]) -> None:
        gpu = make(10 * GIB, 0)
        await ready(gpu.client)
        gpu.n_bytes = 20 * GIB
        gpu._healthy.links[-1].kill()
        await until(gpu, EngineState.READY, more_than=5)
        assert gpu.tries == [*gpu.tries[:4], 0, 10 * GIB]

    async def test_after_a_sleep_too(self, make: Callable[..., Gpu]) -> None:
        gpu = make(10 * GIB, 0)
        client = await self.asleep(gpu)
        gpu.n_bytes = 20 * GIB
        stream = client.submit(make_request(client.new_request_id(), b"Hello"))
        assert [event async for event in stream if isinstance(event, Output)]
        assert gpu.tries[-2:] == [0, 10 * GIB]

    async def test_a_sleeper_that_needs_a_gpu_and_gets_none_refuses_and_tries_again(
        self, make: Callable[..., Gpu]
    ) -> None:
        gpu = make(10 * GIB, 20 * GIB)
        configure(gpu.client, require_gpu=True)
        client = await self.asleep(gpu)
        gpu.n_bytes = 0
        with pytest.raises(EngineDown, match="could not be loaded again: require_gpu is set"):
            [event async for event in client.submit(make_request(client.new_request_id(), b"Hello"))]
        assert client.state is EngineState.SLEEPING
        gpu.n_bytes = 20 * GIB
        stream = client.submit(make_request(client.new_request_id(), b"Hello"))
        assert [event async for event in stream if isinstance(event, Output)]

    async def test_an_engine_that_needs_a_gpu_is_given_up_when_restarts_find_none(
        self, make: Callable[..., Gpu], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(supervisor, "RESTARTS", dataclasses.replace(supervisor.RESTARTS, first_s=0.0))
        gpu = make(10 * GIB, 20 * GIB)
        configure(gpu.client, require_gpu=True)
        await ready(gpu.client)
        gpu.n_bytes = 0
        gpu._healthy.links[-1].kill()
        await until(gpu, EngineState.FAILED)
        assert "the engine cannot serve: require_gpu is set" in caplog.text
        assert len(gpu._healthy.links) == 1


async def until(gpu: Gpu, state: EngineState, *, more_than: int = 0) -> None:
    """Wait for a state, after more than so many tries."""
    async with asyncio.timeout(WAIT_S):
        while gpu.client.state is not state or len(gpu.tries) <= more_than:  # noqa: ASYNC110 - a state has no event
            await asyncio.sleep(0.002)


def test_every_try_takes_less_and_there_is_a_last_one() -> None:
    retreat = Retreat()
    assert retreat.next_limit() is None
    limits = []
    tried = 100
    while True:
        retreat.note(tried)
        limit = retreat.next_limit()
        if limit is None:
            break
        limits.append(limit)
        tried = limit or 1
    assert limits == [85, 68, 40, 0]
    retreat.end()
    retreat.note(10)
    assert retreat.next_limit() == 8


class TestLoader:
    """What the engine's process says of it."""

    def refusing(self, monkeypatch: pytest.MonkeyPatch, line: str, placed: Placed) -> list[Any]:
        """Load with a llama.cpp that logs `line` and gives up."""

        class Log(LoadLog):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                self._receive(logging.ERROR, line)

        def refuse(*_: Any) -> None:
            raise ModelError("llama.cpp could not load m.gguf")

        monkeypatch.setattr(loader, "LoadLog", Log)
        monkeypatch.setattr(loader, "Model", refuse)
        monkeypatch.setattr(loader, "place", lambda *_: placed)
        return []

    @pytest.mark.usefixtures("quiet_log_afterwards")
    @pytest.mark.parametrize(
        ("line", "kind"),
        [
            ("llama_model_load: error loading model: unable to allocate CUDA0 buffer", ModelTooLarge),
            ("llama_init_from_model: failed to initialize: failed to allocate buffer for kv cache", ModelTooLarge),
            ("ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory", ModelTooLarge),
            ("llama_model_load: error loading model: check_tensor_dims: tensor missing", ModelError),
        ],
    )
    def test_want_of_memory_is_told_from_a_bad_file(
        self, monkeypatch: pytest.MonkeyPatch, line: str, kind: type[ModelError]
    ) -> None:
        config = EngineConfig(ModelParams("m.gguf", n_gpu_layers=30), ContextParams(n_ctx=64, n_slots=1))
        self.refusing(monkeypatch, line, Placed(config, "as configured"))
        with pytest.raises(ModelError) as caught:
            loader.load(config, lambda event: None)
        assert type(caught.value) is kind
        assert ("give --n-gpu-layers fewer" in caught.value.message) is (kind is ModelTooLarge)

    @pytest.mark.usefixtures("quiet_log_afterwards")
    def test_its_own_choice_is_told_before_it_loads(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        config = EngineConfig(ModelParams("m.gguf"), ContextParams(n_ctx=64, n_slots=1))
        self.refusing(monkeypatch, "unable to allocate CUDA0 buffer", Placed(config, "all of it", 5 * GIB))
        events: list[Any] = []
        with pytest.raises(ModelTooLarge):
            loader.load(config, events.append)
        assert Placing(5 * GIB) in events

    @pytest.mark.usefixtures("quiet_log_afterwards")
    def test_a_placement_without_the_gpu_is_refused_unread_where_one_is_required(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = EngineConfig(ModelParams("nowhere.gguf", n_gpu_layers=0), ContextParams(64, 1), require_gpu=True)
        monkeypatch.setattr(loader.system, "device_memory", lambda: (DeviceMemory("CUDA0", "A GPU", GIB, GIB, False),))
        with pytest.raises(ModelError, match="require_gpu is set, but no layer runs on a GPU"):
            loader.load(config, lambda event: None)

    @pytest.mark.usefixtures("quiet_log_afterwards")
    def test_what_llama_cpp_made_of_it_is_looked_at_too(
        self, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
    ) -> None:
        config = EngineConfig(ModelParams(str(tiny_model), n_gpu_layers=3), ContextParams(64, 1), require_gpu=True)
        monkeypatch.setattr(loader.system, "device_memory", lambda: (DeviceMemory("CUDA0", "A GPU", GIB, GIB, False),))
        with pytest.raises(ModelError, match="require_gpu is set, but no layer runs on a GPU"):
            loader.load(config, lambda event: None)
