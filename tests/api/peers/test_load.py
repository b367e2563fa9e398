"""What a cluster is told of a server's load, each second."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from ggufd.engine.messages.reports import LiveSlot, LiveState
from ggufd.errors import EngineDown
from tests.support.fakes.api_client import Api, error_of, ring_of, running
from tests.support.fakes.fake_engine import FakeEngine, FakeState

PEER = {"x-ggufd-peer": "t" * 32}


async def load_of(api: Api) -> dict[str, Any]:
    response = await api.http.get("/peers/load", headers=PEER)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def busy(engine: FakeEngine) -> LiveState:
    """Two of four slots of 512 cells run, and one is kept."""
    slots = (
        LiveSlot(0, "a", 1, 200, 0, 300, 4, 1.0),
        LiveSlot(1, "b", 2, 200, 0, 212, 0, 1.0),
        LiveSlot(2, "", None, 0, 0, 400, 0, 1.0),
        LiveSlot(3, "", None, 0, 0, 0, 0, 0.0),
    )
    return replace(LiveState(await engine.stats(), slots, ()), wait_s=1.23456, prefill_tok_s=812.44)


async def test_the_load_is_what_the_engine_says() -> None:
    engine = FakeEngine()
    engine.live = await busy(engine)
    async with running(engine, peer_token="t" * 32, keys=ring_of("admin")) as api:
        assert await load_of(api) == {
            "running": 0,
            "waiting": 0,
            "n_slots": 4,
            "wait_s": 1.235,
            "prefill_tok_s": 812.4,
            "kv_used": 0.25,
            "is_draining": False,
            "fingerprint": "of the fake",
            "model": "fake-model",
        }


async def test_a_draining_server_says_so() -> None:
    async with running(peer_token="t" * 32) as api:
        api.engine.enter(FakeState.DRAINING)
        assert (await load_of(api))["is_draining"] is True


async def test_a_sleeping_engine_is_free_and_is_not_woken() -> None:
    async with running(peer_token="t" * 32) as api:
        api.engine.enter(FakeState.SLEEPING)
        api.engine.live_error = EngineDown("sleeps")
        load = await load_of(api)
        assert (load["n_slots"], load["wait_s"], load["kv_used"]) == (4, 0.0, 0.0)


@pytest.mark.parametrize("state", [FakeState.LOADING, FakeState.STOPPED])
async def test_there_is_no_load_without_an_engine(state: FakeState) -> None:
    async with running(peer_token="t" * 32) as api:
        api.engine.enter(state)
        assert error_of(await api.http.get("/peers/load", headers=PEER), 503)["code"] == "engine_down"


async def test_an_engine_in_a_long_step_is_told_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()
    engine.live = await busy(engine)

    async def never() -> LiveState:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr("ggufd.api.peers.load._ANSWER_S", 0.01)
    async with running(engine, peer_token="t" * 32) as api:
        known = await load_of(api)
        monkeypatch.setattr(engine, "live_state", never)
        assert await load_of(api) == known
