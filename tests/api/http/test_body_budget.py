"""Large bodies of open requests: bounded in their sum, given back at each request's end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ggufd.api.http.body_budget import ORDINARY_BYTES, BodyBudget, BodyShare
from ggufd.errors import Unavailable
from tests.support.fakes.api_client import Api, running
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.fakes.fake_images import FakeImages, url_of

CHAT = "/v1/chat/completions"


def large(n_bytes: int = 3_000_000) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": url_of("a" * n_bytes)}}
    return {"messages": [{"role": "user", "content": [part]}]}


def budget_of(api: Api) -> BodyBudget:
    transport: Any = api.http._transport
    budget: BodyBudget = transport.app.state.body_budget
    return budget


async def until(engine: FakeEngine, n_requests: int) -> None:
    """Wait until the engine has got so many requests."""
    while len(engine.requests) < n_requests:  # noqa: ASYNC110 - the fake tells nobody
        await asyncio.sleep(0.001)


def test_a_share_counts_what_is_more_than_ordinary_and_gives_all_of_it_back() -> None:
    budget = BodyBudget(10_000_000)
    first, second = BodyShare(budget), BodyShare(budget)
    first.cover(ORDINARY_BYTES)
    assert budget.n_taken == 0
    first.cover(6_000_000)
    first.cover(5_000_000)
    assert budget.n_taken == 6_000_000
    with pytest.raises(Unavailable, match="6000000 bytes"):
        second.cover(4_000_001)
    second.cover(4_000_000)
    first.give_back()
    second.give_back()
    second.give_back()
    assert budget.n_taken == 0


async def test_large_requests_that_are_answered_leave_room_for_no_more_than_the_budget() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    async with running(engine, images=FakeImages(), max_body_bytes=8_000_000) as api:
        budget_of(api).max_bytes = 7_000_000
        open_ones = [asyncio.create_task(api.post(CHAT, large())) for _ in range(2)]
        await until(engine, 2)
        response = await api.post(CHAT, large())
        assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
        assert response.headers["retry-after"]
        small = asyncio.create_task(api.post(CHAT, large(1000)))
        await until(engine, 3)
        engine.gate.set()
        assert [(await one).status_code for one in (*open_ones, small)] == [200, 200, 200]
        assert budget_of(api).n_taken == 0
        await api.ok(CHAT, **large())


async def test_a_body_of_unknown_length_is_counted_as_it_comes() -> None:
    async def pieces() -> Any:
        for _ in range(8):
            yield b" " * 500_000

    async with running(max_body_bytes=8_000_000) as api:
        budget_of(api).max_bytes = 3_000_000
        response = await api.http.post(CHAT, content=pieces())
        assert response.status_code == 503
        assert budget_of(api).n_taken == 0


async def test_what_is_refused_gives_its_share_back() -> None:
    async with running(max_body_bytes=8_000_000) as api:
        assert (await api.post(CHAT, large())).status_code == 400
        assert budget_of(api).n_taken == 0
