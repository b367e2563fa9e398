"""Drain and sleep by an admin, the watching of the engine's states, and its live state."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator

import pytest

from ggufd.engine.client.client import EngineClient
from ggufd.engine.client.state import EngineState
from ggufd.engine.messages.reports import ChatsSaved
from ggufd.engine.messages.requests import EVERYBODYS, AdoptChat
from ggufd.errors import Draining, EngineDown, Unavailable
from tests.support.fakes.fake_llama import inproc_client, make_request


@pytest.fixture
async def client() -> AsyncIterator[EngineClient]:
    made = inproc_client()
    made.start()
    async with asyncio.timeout(60):
        await made.wait_ready()
    yield made
    await made.stop()


async def answer(client: EngineClient) -> int:
    """How many events a request has."""
    async with client.submit(make_request(client.new_request_id(), b"Hello")) as stream:
        return len([event async for event in stream])


async def test_a_paused_engine_refuses_until_it_is_resumed(client: EngineClient) -> None:
    seen: list[EngineState] = []
    client.watch(seen.append)
    client.intake.pause()
    assert client.state is EngineState.DRAINING
    with pytest.raises(Unavailable, match="told to drain"):
        client.submit(make_request(1, b"Hello"))
    client.intake.resume()
    assert await answer(client)
    assert seen == [EngineState.DRAINING, EngineState.READY]


async def test_what_runs_goes_on_while_it_is_paused(client: EngineClient) -> None:
    stream = client.submit(make_request(client.new_request_id(), b"Hello", max_tokens=20, ignore_eos=True))
    client.intake.pause()
    assert [event async for event in stream]


async def test_a_server_that_ends_is_not_resumed(client: EngineClient) -> None:
    client.drain()
    client.intake.pause()
    with pytest.raises(Draining):
        client.intake.resume()
    with pytest.raises(Draining, match="shutting down"):
        client.submit(make_request(1, b"Hello"))


async def test_it_sleeps_when_told_and_wakes_for_a_request(client: EngineClient) -> None:
    seen: list[EngineState] = []
    client.watch(seen.append)
    client.sleep()
    client.sleep()
    assert client.state is EngineState.SLEEPING
    with pytest.raises(EngineDown):
        await client.reports.live_state()
    assert await answer(client)
    assert seen == [EngineState.SLEEPING, EngineState.WAKING, EngineState.READY]


async def test_it_does_not_sleep_while_somebody_is_served(client: EngineClient) -> None:
    stream = client.submit(make_request(client.new_request_id(), b"Hello", max_tokens=50, ignore_eos=True))
    with pytest.raises(Unavailable, match="under way"):
        client.sleep()
    assert [event async for event in stream]
    client.sleep()


async def test_an_open_request_is_found_and_its_live_state_told(client: EngineClient) -> None:
    request = make_request(client.new_request_id(), b"Hello", max_tokens=200, ignore_eos=True, person="alice")
    stream = client.submit(request)
    found = client.find(request.request_id)
    assert found is stream
    await anext(stream)
    live = await client.reports.live_state()
    assert [slot.owner for slot in live.slots if slot.request_id is not None] == ["alice"]
    stream.abort()
    assert client.find(request.request_id) is None


async def test_what_is_kept_is_saved_and_taken_up_while_no_requests_are_taken_too(client: EngineClient) -> None:
    client.intake.pause()
    assert await client.reports.save_chats() == ChatsSaved(0)
    client.reports.adopt_chat(AdoptChat("nowhere.npz", 1000, 1.0, array("i", range(300)), EVERYBODYS))
    client.intake.resume()
    assert await answer(client)


async def test_nobody_wakes_an_engine_for_its_chats(client: EngineClient) -> None:
    client.sleep()
    assert await client.reports.save_chats() == ChatsSaved(0)
    client.reports.adopt_chat(AdoptChat("nowhere.npz", 1000, 1.0, array("i", range(300)), EVERYBODYS))
    assert client.state is EngineState.SLEEPING
