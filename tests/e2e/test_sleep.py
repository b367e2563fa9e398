"""An engine that sleeps while nobody uses it: over a thread, over a real process, and the whole server."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ggufd.engine.client.client import EngineClient
from ggufd.engine.client.state import EngineState
from ggufd.engine.client.stream import RequestStream
from ggufd.engine.messages.config import EngineConfig
from ggufd.engine.messages.events import Embedding, Output
from ggufd.engine.messages.reports import LoadFailed
from ggufd.engine.messages.requests import ActOnSlot, EmbedRequest, EngineRequest, SlotAction
from ggufd.errors import Draining, EngineDown, InvalidRequest, ModelError
from ggufd.llama.params import ContextParams, ModelParams
from ggufd.processes.child import Child
from tests.support.fakes.fake_llama import (
    DeadLink,
    InprocSpawn,
    configure,
    engines_of,
    inproc_client,
    link_of,
    make_request,
    run_alone,
    soon,
    spawn_with,
)
from tests.support.models.tiny_model import write_tiny_model
from tests.support.programs.live_server import LiveServer, live_server

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
    configure(client, sleep_idle_s=IDLE_S)
    client.start()
    await client.wait_ready()
    yield client
    await client.stop()


async def test_an_idle_engine_ends_and_says_that_it_sleeps(client: EngineClient) -> None:
    await until(client, EngineState.SLEEPING)
    (link,) = engines_of(client).links
    assert await asyncio.to_thread(link.join, WAIT_S)
    assert client.ready is not None
    with pytest.raises(EngineDown, match="a request loads it"):
        await client.reports.stats()
    assert (await client.reports.act_on_slot(ActOnSlot(0, SlotAction.ERASE))).n_tokens == 0


async def test_requests_wake_it_and_wait_for_the_model_in_order(client: EngineClient) -> None:
    await until(client, EngineState.SLEEPING)
    requests = [request_of(client, bytes([65 + i])) for i in range(4)]
    streams = [client.submit(request) for request in requests]
    assert client.state is EngineState.WAKING
    assert client.n_waiting == 4
    assert [await text_of(stream) for stream in streams] == [run_alone(request).texts[0] for request in requests]
    assert len(engines_of(client).links) == 2
    await until(client, EngineState.SLEEPING)


async def test_texts_that_are_to_become_vectors_wake_it_too(client: EngineClient) -> None:
    await until(client, EngineState.SLEEPING)
    stream = client.submit(EmbedRequest(client.new_request_id(), ((72, 101), (108, 111))))
    vectors = [event async for event in stream if isinstance(event, Embedding)]
    assert sorted(event.index for event in vectors) == [0, 1]


async def test_it_does_not_sleep_while_somebody_is_served(client: EngineClient) -> None:
    engines_of(client).pause()
    stream = client.submit(request_of(client))
    await asyncio.sleep(4 * IDLE_S)
    assert client.state is EngineState.READY
    engines_of(client).resume()
    assert await text_of(stream)


async def test_who_leaves_while_it_wakes_is_not_served_and_it_sleeps_again(client: EngineClient) -> None:
    await until(client, EngineState.SLEEPING)
    client.submit(request_of(client)).abort()
    assert client.n_waiting == 0
    await until(client, EngineState.READY)
    assert (await client.reports.stats()).computed_tokens == 0
    await until(client, EngineState.SLEEPING)


async def test_a_model_that_is_gone_when_it_should_wake_is_said_and_tried_again(client: EngineClient) -> None:
    await until(client, EngineState.SLEEPING)
    spawn = engines_of(client)

    def missing(on_message: Any, on_exit: Any) -> DeadLink:
        soon(on_message, [LoadFailed("no such file")])
        soon(on_exit, 0, "")
        return DeadLink()

    spawn_with(client, missing)
    with pytest.raises(EngineDown, match="loaded again: no such file"):
        await text_of(client.submit(request_of(client)))
    assert client.state is EngineState.SLEEPING
    assert client.trouble == "the model could not be loaded again: no such file"
    spawn_with(client, spawn)
    assert await text_of(client.submit(request_of(client)))
    assert client.trouble == ""


async def test_an_engine_that_dies_while_it_wakes_is_said_and_tried_again_by_the_next_request(
    client: EngineClient,
) -> None:
    await until(client, EngineState.SLEEPING)
    spawn = engines_of(client)

    def dying(on_message: Any, on_exit: Any) -> Any:
        soon(on_exit, -9, "")
        return DeadLink()

    spawn_with(client, dying)
    with pytest.raises(EngineDown, match=r"could not be loaded again: .*signal 9.*is there enough memory\?"):
        await text_of(client.submit(request_of(client)))
    assert client.state is EngineState.SLEEPING
    assert "signal 9" in client.trouble
    spawn_with(client, spawn)
    assert await text_of(client.submit(request_of(client)))


async def test_a_process_that_cannot_be_started_is_said_and_tried_again(client: EngineClient) -> None:
    await until(client, EngineState.SLEEPING)
    spawn = engines_of(client)

    def refuse(*_: object) -> Any:
        raise OSError("too many open files")

    spawn_with(client, refuse)
    with pytest.raises(EngineDown, match=r"could not be started \(too many open files"):
        await text_of(client.submit(request_of(client)))
    assert client.state is EngineState.SLEEPING
    spawn_with(client, spawn)
    assert await text_of(client.submit(request_of(client)))


async def test_what_is_said_of_a_file_does_not_name_its_folder(client: EngineClient, file: Path) -> None:
    """Whoever asks for `/health` needs no key."""
    configure(client, model=ModelParams(str(file), loras=("/secret/a b.gguf",)))
    await until(client, EngineState.SLEEPING)

    def missing(on_message: Any, on_exit: Any) -> Any:
        soon(on_message, [LoadFailed(f"{file}: no such file; /secret/a b.gguf: neither")])
        soon(on_exit, 0, "")
        return DeadLink()

    spawn_with(client, missing)
    with pytest.raises(EngineDown) as down:
        await text_of(client.submit(request_of(client)))
    assert down.value.message == client.trouble
    assert client.trouble == "the model could not be loaded again: m.gguf: no such file; a b.gguf: neither"


# --- slots of a sleeper -----------------------------------------------------------------------------------------------


async def cached_tokens(stream: RequestStream) -> int:
    """How much of a request's prompt was at hand."""
    finish = [event async for event in stream if isinstance(event, Output)][-1].finish
    assert finish is not None
    return finish.usage.cached_tokens


def at_slot(action: SlotAction, path: Path, slot: int = 0) -> ActOnSlot:
    return ActOnSlot(slot, action, str(path), "mark")


async def test_to_restore_a_slot_wakes_it_and_to_save_or_erase_one_has_nothing_to_do(
    client: EngineClient, tmp_path: Path
) -> None:
    stream = client.submit(request_of(client, b"A chat that is worth to be kept", max_tokens=4))
    await text_of(stream)
    saved = await client.reports.act_on_slot(at_slot(SlotAction.SAVE, tmp_path / "chat"))
    await until(client, EngineState.SLEEPING)
    with pytest.raises(InvalidRequest, match="slot 0 keeps nothing that could be saved: the model is unloaded"):
        await client.reports.act_on_slot(at_slot(SlotAction.SAVE, tmp_path / "other"))
    assert (await client.reports.act_on_slot(at_slot(SlotAction.ERASE, tmp_path / "x"))).n_tokens == 0
    assert client.state is EngineState.SLEEPING
    done = await client.reports.act_on_slot(at_slot(SlotAction.RESTORE, tmp_path / "chat"))
    assert (done.n_tokens, done.failure) == (saved.n_tokens, "")
    assert client.state is EngineState.READY
    stream = client.submit(request_of(client, b"A chat that is worth to be kept", max_tokens=4))
    assert await cached_tokens(stream) == 30
    await until(client, EngineState.SLEEPING)


async def test_several_slots_are_restored_after_one_load(client: EngineClient, tmp_path: Path) -> None:
    await text_of(client.submit(request_of(client, b"A chat that is worth to be kept", max_tokens=4)))
    await client.reports.act_on_slot(at_slot(SlotAction.SAVE, tmp_path / "chat"))
    await until(client, EngineState.SLEEPING)
    stream = client.submit(request_of(client, b"A chat that is worth to be kept", max_tokens=4))
    restoring = [client.reports.act_on_slot(at_slot(SlotAction.RESTORE, tmp_path / "chat", slot)) for slot in (0, 1, 0)]
    assert len({done.n_tokens for done in await asyncio.gather(*restoring)}) == 1
    # They come first: the request that was sent beside them profits.
    assert await cached_tokens(stream) == 30
    assert len(engines_of(client).links) == 2


async def test_a_restore_that_cannot_wake_it_or_finds_no_file_is_told(client: EngineClient, tmp_path: Path) -> None:
    await until(client, EngineState.SLEEPING)
    with pytest.raises(InvalidRequest, match="no saved slot chat"):
        await client.reports.act_on_slot(at_slot(SlotAction.RESTORE, tmp_path / "chat"))
    await until(client, EngineState.SLEEPING)

    def missing(on_message: Any, on_exit: Any) -> Any:
        soon(on_message, [LoadFailed("no such file")])
        soon(on_exit, 0, "")
        return DeadLink()

    spawn_with(client, missing)
    with pytest.raises(EngineDown, match="loaded again: no such file"):
        await client.reports.act_on_slot(at_slot(SlotAction.RESTORE, tmp_path / "chat"))
    assert client.state is EngineState.SLEEPING


async def test_a_restore_is_told_when_everything_ends_meanwhile(client: EngineClient, tmp_path: Path) -> None:
    await until(client, EngineState.SLEEPING)
    restoring = asyncio.create_task(client.reports.act_on_slot(at_slot(SlotAction.RESTORE, tmp_path / "chat")))
    await asyncio.sleep(0)
    await client.stop()
    with pytest.raises((Draining, EngineDown)):
        await restoring


async def test_it_does_not_sleep_while_a_slot_is_restored(client: EngineClient, tmp_path: Path) -> None:
    await text_of(client.submit(request_of(client, b"A chat that is worth to be kept", max_tokens=4)))
    await client.reports.act_on_slot(at_slot(SlotAction.SAVE, tmp_path / "chat"))
    is_decoding, may_go_on = threading.Event(), threading.Event()

    def wait() -> None:
        is_decoding.set()
        may_go_on.wait()

    stream = client.submit(request_of(client))
    engines_of(client).decoders[-1].before_decode = wait
    try:
        assert await asyncio.to_thread(is_decoding.wait, WAIT_S)
        restoring = asyncio.create_task(client.reports.act_on_slot(at_slot(SlotAction.RESTORE, tmp_path / "chat")))
        await asyncio.sleep(0)
        stream.abort()
        await asyncio.sleep(4 * IDLE_S)
        assert client.state is EngineState.READY
    finally:
        may_go_on.set()
    assert (await restoring).n_tokens


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """What a client's model lies in; the fake engines do not read it."""
    file = tmp_path / "m.gguf"
    file.write_bytes(b"one")
    return file


async def asleep(file: Path) -> EngineClient:
    """One that served a request, of the model in `file`."""
    client = inproc_client(InprocSpawn(n_slots=2))
    configure(client, sleep_idle_s=IDLE_S, model=ModelParams(str(file)))
    client.start()
    await client.wait_ready()
    await noted(client)
    await until(client, EngineState.SLEEPING)
    return client


async def noted(client: EngineClient) -> None:
    """What is in the file has been read, which takes some milliseconds once it is loaded."""
    noting = client._supervisor._noting
    assert noting is not None
    await noting


@pytest.mark.parametrize("how", ["touched", "copied over", "rewritten"])
async def test_the_same_contents_are_the_same_model(file: Path, how: str) -> None:
    client = await asleep(file)
    match how:
        case "touched":
            os.utime(file, (1, 1))
        case "copied over":
            shutil.copyfile(file, file.with_name("copy"))
            os.replace(file.with_name("copy"), file)
        case "rewritten":
            await asyncio.to_thread(file.write_bytes, b"one")
    assert await text_of(client.submit(request_of(client)))
    await client.stop()


async def test_a_model_that_is_back_is_served_again(file: Path) -> None:
    client = await asleep(file)
    await asyncio.to_thread(file.write_bytes, b"two")
    with pytest.raises(EngineDown, match="is another file"):
        await text_of(client.submit(request_of(client)))
    assert client.trouble.startswith("the model could not be loaded again: m.gguf is another file")
    await asyncio.to_thread(file.write_bytes, b"one")
    assert await text_of(client.submit(request_of(client)))
    assert client.trouble == ""
    await client.stop()


async def test_a_model_that_is_loaded_again_instead_of_another_is_the_very_same(file: Path) -> None:
    """The text process goes on from before."""
    client = await asleep(file)
    os.utime(file, (1, 1))
    again = client.renewed()
    await client.stop()
    again.start()
    await again.wait_ready()
    assert await text_of(again.submit(request_of(again)))
    await asyncio.to_thread(file.write_bytes, b"two")
    third = again.renewed()
    await again.stop()
    third.start()
    with pytest.raises(ModelError, match="is another file than was loaded before"):
        await third.wait_ready()
    assert third.state is EngineState.FAILED
    await third.stop()


async def test_a_crash_after_a_touch_is_but_a_crash(file: Path) -> None:
    client = inproc_client(InprocSpawn(n_slots=2))
    configure(client, model=ModelParams(str(file)))
    client.start()
    await client.wait_ready()
    await noted(client)
    os.utime(file, (1, 1))
    engines_of(client).links[-1].kill()
    async with asyncio.timeout(WAIT_S):
        while len(engines_of(client).links) == 1:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.002)
    await until(client, EngineState.READY)
    assert await text_of(client.submit(request_of(client)))
    await client.stop()


async def test_a_file_that_was_replaced_meanwhile_is_not_loaded_under_the_old_vocabulary(file: Path) -> None:
    client = inproc_client(InprocSpawn(n_slots=2))
    configure(client, sleep_idle_s=IDLE_S, model=ModelParams(str(file)))
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
    configure(client, model=ModelParams(str(file)))
    client.start()
    await client.wait_ready()
    await asyncio.to_thread(file.write_bytes, b"another")
    engines_of(client).links[-1].kill()
    await until(client, EngineState.FAILED)
    assert "the engine cannot serve: " in caplog.text
    assert len(engines_of(client).links) == 1
    await client.stop()


async def test_stopping_a_sleeper_and_one_that_wakes_ends_everything(client: EngineClient) -> None:
    await until(client, EngineState.SLEEPING)
    stream = client.submit(request_of(client))
    await client.stop()
    with pytest.raises(Draining):
        await text_of(stream)
    assert all([await asyncio.to_thread(link.join, WAIT_S) for link in engines_of(client).links])


async def test_an_engine_without_that_setting_never_sleeps() -> None:
    client = inproc_client()
    client.start()
    await client.wait_ready()
    assert await text_of(client.submit(request_of(client)))
    assert not client._supervisor._idle_timer.is_running
    await client.stop()


async def test_the_process_of_a_sleeper_is_gone_and_its_text_the_same_afterwards(tiny_model: Path) -> None:
    context = ContextParams(n_ctx=256, n_slots=2, n_batch=64, n_ubatch=64, n_threads=1, flash_attn="off")
    client = EngineClient(EngineConfig(ModelParams(str(tiny_model)), context, sleep_idle_s=IDLE_S))
    client.start()
    async with asyncio.timeout(WAIT_S):
        await client.wait_ready()
    before = await text_of(client.submit(request_of(client, max_tokens=20, ignore_eos=True)))
    link = link_of(client)
    assert isinstance(link, Child)
    pid = link.pid
    await until(client, EngineState.SLEEPING)
    assert await client._supervisor._process.wait_gone()
    assert not psutil.pid_exists(pid)
    assert await text_of(client.submit(request_of(client, max_tokens=20, ignore_eos=True))) == before
    await client.stop()


class Sleeper:
    """A server that falls asleep after two seconds, whose model is a copy of the tiny one."""

    def __init__(self, server: LiveServer, file: Path) -> None:
        self.server, self.file = server, file
        self.http = httpx.Client(base_url=server.url, trust_env=False, timeout=WAIT_S)

    def ask(self) -> httpx.Response:
        body = {"prompt": "Once upon a time, long ago", "max_tokens": 6, "temperature": 0, "ignore_eos": True}
        return self.http.post("/v1/completions", json=body)

    def act(self, action: str) -> httpx.Response:
        return self.http.post(f"/slots/0?action={action}", json={"filename": "chat"})

    def fall_asleep(self) -> None:
        deadline = time.monotonic() + WAIT_S
        while not self.http.get("/props").json()["is_sleeping"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def health(self) -> list[tuple[int, str]]:
        answers = [self.http.get(path) for path in ("/health", "/ready", "/v1/health")]
        return [(answer.status_code, answer.json()["status"]) for answer in answers]


@pytest.fixture
def sleeper(tiny_model: Path, tmp_path: Path) -> Iterator[Sleeper]:
    file = tmp_path / "m.gguf"
    shutil.copyfile(tiny_model, file)
    flags = ("-m", str(file), "-t", "1", "--flash-attn", "off", "-c", "1024", "-np", "2", "--sleep-idle-seconds", "2")
    with live_server(*flags, "--slot-save-path", str(tmp_path / "slots")) as server:
        made = Sleeper(server, file)
        assert made.ask().status_code == 200
        made.fall_asleep()
        yield made
        made.http.close()


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_a_touched_model_and_a_copy_of_it_wake(sleeper: Sleeper) -> None:
    assert sleeper.health() == [(200, "sleeping")] * 3
    os.utime(sleeper.file)
    text = sleeper.ask().json()["choices"][0]["text"]
    sleeper.fall_asleep()
    shutil.copyfile(sleeper.file, sleeper.file.with_name("copy"))
    os.replace(sleeper.file.with_name("copy"), sleeper.file)
    assert sleeper.ask().json()["choices"][0]["text"] == text
    assert sleeper.health() == [(200, "ok")] * 3


@pytest.mark.e2e
@pytest.mark.timeout(300)
@pytest.mark.parametrize("fate", ["deleted", "of other weights"])
def test_a_sleeper_that_cannot_wake_is_not_well_until_its_model_is_back(sleeper: Sleeper, fate: str) -> None:
    kept = sleeper.file.with_name("kept")
    os.rename(sleeper.file, kept)
    if fate != "deleted":
        write_tiny_model(sleeper.file, seed=1)
    refused = sleeper.ask()
    assert refused.status_code == 503
    assert "retry-after" in refused.headers
    assert "the model could not be loaded again: " in refused.json()["error"]["message"]
    assert ("is another file than was loaded before" in refused.text) == (fate == "of other weights")
    assert sleeper.health() == [(503, "wake_failed")] * 3
    error = sleeper.http.get("/ready").json()["error"]
    assert error["code"] == "wake_failed"
    assert "could not be loaded again" in error["message"]
    assert str(sleeper.file.parent) not in error["message"]
    assert sleeper.http.get("/health/live").status_code == 200
    assert sleeper.act("restore").status_code == 503
    assert sleeper.server.exit_code is None
    os.replace(kept, sleeper.file)
    assert sleeper.ask().status_code == 200
    assert sleeper.health() == [(200, "ok")] * 3


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_slots_of_a_sleeping_server_are_restored_and_never_answered_with_later(sleeper: Sleeper) -> None:
    assert sleeper.act("save").status_code == 400
    assert sleeper.ask().status_code == 200
    saved = sleeper.act("save").json()
    sleeper.fall_asleep()
    refused = sleeper.act("save")
    assert (refused.status_code, "retry-after" in refused.headers) == (400, False)
    assert "keeps nothing that could be saved: the model is unloaded" in refused.json()["error"]["message"]
    assert sleeper.act("erase").json()["n_erased"] == 0
    slots = sleeper.http.get("/slots").json()
    assert [(slot["is_processing"], slot["n_past"]) for slot in slots] == [(False, 0)] * 2
    assert sleeper.http.get("/debug/steps").status_code == 200
    assert sleeper.http.get("/props").json()["is_sleeping"] is True
    assert sleeper.act("restore").json()["n_restored"] == saved["n_saved"] > 0
    assert sleeper.ask().json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


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
