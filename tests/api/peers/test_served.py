"""Served tokens between the servers of a cluster: told by account, and charged by weight."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ggufd.engine.messages.reports import LimitUse, LiveState, UseElsewhere
from ggufd.errors import EngineDown
from ggufd.keys.principal import BACKGROUND
from ggufd.keys.ring import Key, KeyRing, Limits, digest_of
from tests.support.fakes.api_client import error_of, running
from tests.support.fakes.fake_engine import FakeEngine

TOKEN = "t" * 32
PEER = {"x-ggufd-peer": TOKEN}


async def test_served_tokens_are_told_by_account_but_for_background_work() -> None:
    engine = FakeEngine()
    served = (("anna", 12.5), (BACKGROUND, 99.0), ("", 3.0))
    engine.live = replace(LiveState(await engine.stats(), (), ()), served=served)
    async with running(engine, peer_token=TOKEN) as api:
        told = await api.http.get("/peers/served", headers=PEER)
    assert told.json() == {"accounts": {"anna": 12.5, "": 3.0}, "limits": {}}
    assert list(told.json()["accounts"]) == ["anna", ""], "the latest last"


async def test_without_an_engine_nothing_is_told() -> None:
    async with running(peer_token=TOKEN) as api:
        api.engine.live_error = EngineDown("sleeps")
        assert (await api.http.get("/peers/served", headers=PEER)).json() == {"accounts": {}, "limits": {}}


async def test_what_accounts_with_limits_use_is_told_with_the_slots_that_they_hold() -> None:
    engine = FakeEngine()
    engine.live = replace(LiveState(await engine.stats(), (), ()), standing=(("anna", 2, 3), ("bert", 1, 0)))
    engine.limits_used = [LimitUse("anna", 1.5, 4, 2), LimitUse("carl", 0.5, 0, None)]
    carl = {"used_s": 0.5, "waiting": 0, "running": 0, "queued": 0, "max_running": None}
    async with running(engine, peer_token=TOKEN) as api:
        told = (await api.http.get("/peers/served", headers=PEER)).json()["limits"]
        assert told == {
            "anna": {"used_s": 1.5, "waiting": 4, "running": 2, "queued": 3, "max_running": 2},
            "carl": carl,
        }
        engine.live_error = EngineDown("sleeps")
        told = (await api.http.get("/peers/served", headers=PEER)).json()["limits"]
        assert (told["anna"]["running"], told["anna"]["queued"], told["carl"]) == (0, 0, carl)


async def test_what_is_used_elsewhere_counts_until_the_next_word() -> None:
    async with running(peer_token=TOKEN) as api:
        limits = {"anna": {"used_s": 2, "waiting": 3, "running": 4}, "bert": {}}
        for body, counted in (
            ({"accounts": {}, "limits": limits}, [UseElsewhere("anna", 2.0, 3, 4), UseElsewhere("bert", 0.0, 0, 0)]),
            ({"accounts": {"anna": 1.0}}, []),
        ):
            answer = await api.http.post("/peers/served", headers=PEER, json=body)
            assert answer.status_code == 200
            assert api.engine.limits_elsewhere == counted


async def test_what_was_served_elsewhere_is_charged_by_the_weight_of_the_key() -> None:
    keys = KeyRing([Key("anna", digest_of("a"), limits=Limits(weight=4.0)), Key("bert", digest_of("b"))])
    async with running(peer_token=TOKEN, keys=keys) as api:
        body = {"accounts": {"anna": 8.0, "bert": 8, "somebody": 2.0, "nothing": 0.0}}
        answer = await api.http.post("/peers/served", headers=PEER, json=body)
        assert answer.status_code == 200
        assert api.engine.charged == [("anna", 2.0), ("bert", 8.0), ("somebody", 2.0)]


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        "[]",
        "{",
        '{"accounts": 5}',
        '{"accounts": {"a": -1}}',
        '{"accounts": {"a": "1"}}',
        '{"accounts": {"a": 1e400}}',
        '{"accounts": {"a": 1e13}}',
        '{"accounts": {"a": null}}',
        '{"accounts": {"a": NaN}}',
        '{"accounts": {}, "limits": 5}',
        '{"accounts": {}, "limits": {"a": 5}}',
        '{"accounts": {}, "limits": {"a": {"waiting": -1}}}',
        '{"accounts": {}, "limits": {"a": {"running": 1.5}}}',
        '{"accounts": {}, "limits": {"a": {"used_s": 1e9}}}',
    ],
)
async def test_a_bad_sum_is_refused_and_charges_nobody(body: str) -> None:
    async with running(peer_token=TOKEN) as api:
        answer = await api.http.post("/peers/served", headers=PEER, content=body)
        assert error_of(answer, 400)["type"] == "invalid_request_error"
        assert (api.engine.charged, api.engine.limits_elsewhere) == ([], [])


@pytest.mark.parametrize(("method", "headers"), [("GET", {}), ("POST", {}), ("POST", {"x-ggufd-peer": "wrong" * 8})])
async def test_only_the_cluster_may_ask_or_charge(method: str, headers: dict[str, Any]) -> None:
    async with running(peer_token=TOKEN) as api:
        answer = await api.http.request(method, "/peers/served", headers=headers, json={"accounts": {"a": 1.0}})
        assert error_of(answer, 401)["code"] == "invalid_peer_token"
        assert api.engine.charged == []


async def test_a_server_of_no_cluster_has_no_such_route() -> None:
    async with running() as api:
        assert (await api.http.get("/peers/served")).status_code == 404
