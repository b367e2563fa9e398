"""An engine that sleeps while nobody uses it: over a thread, over a real process, and the whole server."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from server.engine.child import Child
from server.engine.client import EngineClient, EngineState
from server.engine.messages import (
    ActOnSlot,
    Embedding,
    EmbedRequest,
    EngineConfig,
    EngineRequest,
    LoadFailed,
    Output,
    SlotAction,
)
from server.engine.stream import RequestStream
from server.errors import Draining, EngineDown
from server.llama.params import ContextParams, ModelParams
from tests.fake_llama import InprocSpawn, inproc_client, make_request, run_alone, soon
from tests.live_server import live_server

WAIT_S = 60.0
IDLE_S = 0.05


async def until(client: EngineClient, state: EngineState) -> None:
    async with asyncio.timeout(WAIT_S):
        while client.state is not state:  # noqa: ASYNC110 - a state has no event
            await asyncio.sleep(0.002)


async def text_of(stream: RequestStream) -> str:
    return "".join([event.text async for event in stream if isinstance(event, Output)])


def request_of(client: EngineClient, prompt: bytes = b"Hello", **changes: Any) -> EngineRequest:
    return make_request(client.new_request_id(), prompt, **changes)


@pytest.fixture
async def client() -> AsyncIterator[EngineClient]:
    """Ready, and about to sleep. Its engine is the real one over a fake decoder."""
    client = inproc_client(InprocSpawn(n_slots=2))
    client.config = dataclasses.replace(client.config, sleep_idle_s=IDLE_S)
    client.start()
    await client.wait_ready()
    yield client
    await client.stop()


async def test_an_idle_engine_ends_and_says_that_it_sleeps(client: EngineClient) -> None:
    await until(client, EngineState.SLEEPING)
    assert isinstance(client._spawn, InprocSpawn)
    (link,) = client._spawn.links
    assert await asyncio.to_thread(link.join, WAIT_S)
    assert client.ready is not None
    with pytest.raises(EngineDown, match="a request loads it"):
        await client.stats()
    assert (await client.act_on_slot(ActOnSlot(0, SlotAction.ERASE))).n_tokens == 0


async def test_requests_wake_it_and_wait_for_the_model_in_order(client: EngineClient) -> None:
    await until(client, EngineState.SLEEPING)
    requests = [request_of(client, bytes([65 + i])) for i in range(4)]
    streams = [client.submit(request) for request in requests]
    assert client.state is EngineState.WAKING
    assert client.n_waiting == 4
    assert [await text_of(stream) for stream in streams] == [run_alone(request).texts[0] for request in requests]
    assert isinstance(client._spawn, InprocSpawn)
    assert len(client._spawn.links) == 2
    await until(client, EngineState.SLEEPING)


async def test_texts_that_are_to_become_vectors_wake_it_too(client: EngineClient) -> None:
    await until(client, EngineState.SLEEPING)
    stream = client.submit(EmbedRequest(client.new_request_id(), ((72, 101), (108, 111))))
    vectors = [event async for event in stream if isinstance(event, Embedding)]
    assert sorted(event.index for event in vectors) == [0, 1]


async def test_it_does_not_sleep_while_somebody_is_served(client: EngineClient) -> None:
    assert isinstance(client._spawn, InprocSpawn)
    client._spawn.pause()
    stream = client.submit(request_of(client))
    await asyncio.sleep(4 * IDLE_S)
    assert client.state is EngineState.READY
    client._spawn.resume()
    assert await text_of(stream)


async def test_who_leaves_while_it_wakes_is_not_served_and_it_sleeps_again(client: EngineClient) -> None:
    await until(client, EngineState.SLEEPING)
    client.submit(request_of(client)).abort()
    assert client.n_waiting == 0
    await until(client, EngineState.READY)
    assert (await client.stats()).computed_tokens == 0
    await until(client, EngineState.SLEEPING)


async def test_a_model_that_is_gone_when_it_should_wake_is_said_and_tried_again(client: EngineClient) -> None:
    await until(client, EngineState.SLEEPING)
    spawn = client._spawn

    class Missing:
        def __init__(self, on_message: Any, on_exit: Any) -> None:
            soon(on_message, [LoadFailed("no such file")])
            soon(on_exit, 0, "")

        def send(self, message: Any) -> None: ...
        def kill(self) -> None: ...
        def join(self, timeout_s: float) -> bool:
            return True

    client._spawn = Missing
    with pytest.raises(EngineDown, match="loaded again: no such file"):
        await text_of(client.submit(request_of(client)))
    assert client.state is EngineState.SLEEPING
    client._spawn = spawn
    assert await text_of(client.submit(request_of(client)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """What a client's model lies in; the fake engines do not read it."""
    file = tmp_path / "m.gguf"
    file.write_bytes(b"one")
    return file


async def test_a_file_that_was_replaced_meanwhile_is_not_loaded_under_the_old_vocabulary(file: Path) -> None:
    client = inproc_client(InprocSpawn(n_slots=2))
    client.config = dataclasses.replace(client.config, sleep_idle_s=IDLE_S, model=ModelParams(str(file)))
    client.start()
    await client.wait_ready()
    await until(client, EngineState.SLEEPING)
    assert await text_of(client.submit(request_of(client)))
    await until(client, EngineState.SLEEPING)
    await asyncio.to_thread(file.write_bytes, b"another")
    with pytest.raises(EngineDown, match=r"m\.gguf is another file than was loaded before: start the server again"):
        await text_of(client.submit(request_of(client)))
    assert client.state is EngineState.SLEEPING
    await client.stop()


async def test_nor_is_it_after_a_crash(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    client = inproc_client(InprocSpawn(n_slots=2))
    client.config = dataclasses.replace(client.config, model=ModelParams(str(file)))
    client.start()
    await client.wait_ready()
    await asyncio.to_thread(file.write_bytes, b"another")
    assert isinstance(client._spawn, InprocSpawn)
    client._spawn.links[-1].kill()
    await until(client, EngineState.FAILED)
    assert "the engine cannot serve: " in caplog.text
    assert len(client._spawn.links) == 1
    await client.stop()


async def test_stopping_a_sleeper_and_one_that_wakes_ends_everything(client: EngineClient) -> None:
    await until(client, EngineState.SLEEPING)
    stream = client.submit(request_of(client))
    await client.stop()
    with pytest.raises(Draining):
        await text_of(stream)
    assert isinstance(client._spawn, InprocSpawn)
    assert all([await asyncio.to_thread(link.join, WAIT_S) for link in client._spawn.links])


async def test_an_engine_without_that_setting_never_sleeps() -> None:
    client = inproc_client()
    client.start()
    await client.wait_ready()
    assert await text_of(client.submit(request_of(client)))
    assert client._sleep_timer is None
    await client.stop()


async def test_the_process_of_a_sleeper_is_gone_and_its_text_the_same_afterwards(tiny_model: Path) -> None:
    context = ContextParams(n_ctx=256, n_slots=2, n_batch=64, n_ubatch=64, n_threads=1, flash_attn="off")
    client = EngineClient(EngineConfig(ModelParams(str(tiny_model)), context, sleep_idle_s=IDLE_S))
    client.start()
    async with asyncio.timeout(WAIT_S):
        await client.wait_ready()
    before = await text_of(client.submit(request_of(client, max_tokens=20, ignore_eos=True)))
    assert isinstance(client._link, Child)
    pid = client._link.pid
    assert pid is not None
    await until(client, EngineState.SLEEPING)
    await client._gone.wait()
    assert not psutil.pid_exists(pid)
    assert await text_of(client.submit(request_of(client, max_tokens=20, ignore_eos=True))) == before
    await client.stop()


def _memory(pid: int) -> int:
    """Bytes resident in a process and its children."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(process.memory_info().rss for process in family)


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_a_sleeping_server_gives_its_memory_back_and_wakes_for_a_stream() -> None:
    flags = ("--ctx-size", "4096", "-t", "1", "--flash-attn", "off", "--sleep-idle-seconds", "1", "--ping-s", "0.1")
    with live_server(*flags) as server, httpx.Client(base_url=server.url, trust_env=False, timeout=WAIT_S) as http:
        body = {"prompt": "Once", "max_tokens": 4, "temperature": 0}
        before = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
        awake = _memory(server.pid)
        deadline = time.monotonic() + WAIT_S
        while http.get("/health").json()["status"] != "sleeping":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(0.5)
        assert awake - _memory(server.pid) > 100 << 20
        assert http.get("/v1/models").json()["data"][0]["meta"]["n_ctx"] == 4096
        assert http.get("/props").json()["is_sleeping"] is True
        with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as stream:
            lines = [line for line in stream.iter_lines() if line]
        assert lines[0].startswith(": ping")
        assert lines[-1] == "data: [DONE]"
        assert http.post("/v1/completions", json=body).json()["choices"][0]["text"] == before
