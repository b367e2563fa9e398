"""Every client's contract, in each version: over the fakes, and against the real server with the real model."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.api_client import running
from tests.contract import Exchange, check, exchanges, found
from tests.live_server import LiveServer, live_server

ALL = exchanges()

ROUTES = {
    ("GET", "/v1/models"),
    ("GET", "/models"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/chat/completions"),
    ("POST", "/completion"),
    ("GET", "/props"),
    ("POST", "/tokenize"),
    ("POST", "/v1/completions"),
    ("POST", "/completions"),
    ("POST", "/v1/embeddings"),
    ("GET", "/v1/internal/model/info"),
    ("POST", "/v1/internal/encode"),
    ("POST", "/api/extra/tokencount"),
    ("POST", "/api/extra/abort"),
    ("GET", "/v1/model/list"),
    ("GET", "/v1/model"),
    ("POST", "/v1/token/encode"),
    ("POST", "/v1/tokenize"),
    ("GET", "/api/tags"),
    ("POST", "/api/generate"),
    ("GET", "/slots"),
    ("POST", "/slots/0"),
    ("GET", "/api/v1/info/version"),
    ("GET", "/api/extra/version"),
    ("GET", "/api/v1/model"),
    ("POST", "/api/v1/generate"),
    ("POST", "/api/extra/generate/stream"),
}
"""Every route that one of the clients needs, in both versions."""


@pytest.mark.parametrize("version", ["1.12.6", "1.18.0"])
def test_every_route_that_a_client_needs_is_in_the_contract(version: str) -> None:
    asked = {(one.method, one.path.partition("?")[0]) for one in ALL if one.client.endswith(version)}
    assert asked >= ROUTES


def test_paths_of_checks_find_what_they_say() -> None:
    data = {"a": [{"b": 1}, {"b": 2}, {"c": None}]}
    assert list(found(data, "a[*].b")) == [1, 2]
    assert list(found(data, "a[-1]")) == [{"c": None}]
    assert list(found(data, "a[9].b")) == list(found(data, "a[2].c")) == []


@pytest.mark.parametrize("exchange", ALL, ids=str)
async def test_over_the_fakes(exchange: Exchange) -> None:
    async with running() as api:
        response = await api.http.request(
            exchange.method, exchange.path, content=exchange.content, headers=exchange.headers
        )
    check(exchange, response.status_code, dict(response.headers), response.text)


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server("--ctx-size", "2048") as running:
        yield running


LIVE = [one for one in ALL if one.client.endswith("1.18.0") or one.client.startswith(("llamacpp", "custom"))]
"""What the real server is asked too: of clients whose versions read the same replies, the newer."""


@pytest.mark.e2e
@pytest.mark.parametrize("exchange", LIVE, ids=str)
def test_against_the_real_server(exchange: Exchange, server: LiveServer) -> None:
    response = httpx.request(
        exchange.method,
        server.url + exchange.path,
        content=exchange.greedy_content,
        headers=exchange.headers,
        timeout=120,
        trust_env=False,
    )
    check(exchange, response.status_code, dict(response.headers), response.text)
