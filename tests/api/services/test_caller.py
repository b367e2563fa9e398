"""On whose account a request goes, and what comes of it over HTTP: limits, shares, priorities."""

from __future__ import annotations

from typing import Any

import pytest

from ggufd.api.services.caller import Caller, principal_of
from ggufd.api.services.settings import ApiConfig
from ggufd.errors import InvalidRequest, TooManyRequests
from ggufd.keys.principal import Principal
from ggufd.keys.ring import ANYBODY, Key, KeyRing, Limits, Role, digest_of
from tests.support.fakes.api_client import running
from tests.support.fakes.fake_engine import FakeEngine


def config(**changes: Any) -> ApiConfig:
    return ApiConfig(model_id="fake", **changes)


ALICE = Key("alice", digest_of("a"), Role.USER, Limits(weight=3.0))
DIGEST = ALICE.digest.hex()


@pytest.mark.parametrize(
    ("key", "settings", "principal"),
    [
        (ALICE, {}, Principal("alice", "alice", "alice", "", ALICE.limits)),
        (ALICE, {"share_by_address": False}, Principal("alice", "alice", "alice", "", ALICE.limits)),
        (ALICE, {"cache_sharing": "per-key"}, Principal("alice", "alice", "alice", DIGEST, ALICE.limits)),
        (ANYBODY, {}, Principal("", "10.0.0.1", "10.0.0.1")),
        (ANYBODY, {"share_by_address": False}, Principal("", "10.0.0.1")),
        (ANYBODY, {"cache_sharing": "per-key"}, Principal("", "10.0.0.1", "10.0.0.1", "10.0.0.1")),
    ],
)
def test_a_principal_is_a_keys_or_an_addresses_or_everybodys(
    key: Key, settings: dict[str, Any], principal: Principal
) -> None:
    assert principal_of(key, "10.0.0.1", config(**settings)) == principal


def test_what_a_key_was_granted_goes_before_what_everybody_gets() -> None:
    key = Key("alice", digest_of("a"), limits=Limits(weight=2.0, max_waiting=0))
    everybody = config(limits=Limits(max_running=3, max_waiting=5, tokens_per_minute=100))
    assert principal_of(key, "", everybody).limits == Limits(
        weight=2.0, max_running=3, max_waiting=0, tokens_per_minute=100, max_priority=None
    )


@pytest.mark.parametrize(
    ("granted", "is_admin", "priority", "is_refused"),
    [
        (None, False, 0, False),
        (None, False, 7, False),
        (None, False, -1, True),
        (None, True, -100, False),
        (-2, False, -2, False),
        (-2, False, -3, True),
        (3, False, 2, True),
        (3, True, 2, True),
    ],
)
def test_a_key_is_as_urgent_as_it_may_be(granted: int | None, is_admin: bool, priority: int, is_refused: bool) -> None:
    caller = Caller(Principal("alice", limits=Limits(max_priority=granted)), is_admin=is_admin)
    if not is_refused:
        caller.check_priority(priority)
        return
    with pytest.raises(InvalidRequest) as refusal:
        caller.check_priority(priority)
    assert refusal.value.param == "priority"


async def test_a_request_carries_its_keys_account_and_priority_on_every_route() -> None:
    routes = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
        "/v1/completions": {"prompt": "x"},
        "/completion": {"prompt": "x"},
        "/api/v1/generate": {"prompt": "x"},
        "/api/chat": {"messages": [{"role": "user", "content": "x"}], "stream": False},
    }
    async with running(keys=KeyRing([ALICE]), limits=Limits(max_waiting=4)) as api:
        for path, body in routes.items():
            answer = await api.http.post(path, json=body | {"priority": 2}, headers={"x-api-key": "a"})
            assert answer.status_code == 200, path
            request = api.engine.requests[-1]
            assert (request.principal.account, request.priority) == ("alice", 2)
            assert request.principal.limits == Limits(weight=3.0, max_waiting=4)


@pytest.mark.parametrize("priority", [-1, "high", 1.5, 10**30, True])
async def test_a_priority_that_cannot_be_is_a_400_that_names_it(priority: Any) -> None:
    async with running(keys=KeyRing([ALICE])) as api:
        answer = await api.http.post(
            "/v1/completions", json={"prompt": "x", "priority": priority}, headers={"x-api-key": "a"}
        )
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "priority"


async def test_a_refusal_of_a_key_is_openais_rate_limit_error() -> None:
    engine = FakeEngine()
    engine.refusal = TooManyRequests("this key may have 1 requests waiting", retry_after_s=6.2)
    async with running(engine) as api:
        for stream in (False, True):
            answer = await api.http.post("/v1/completions", json={"prompt": "x", "stream": stream})
            assert (answer.status_code, answer.headers["Retry-After"]) == (429, "7")
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
