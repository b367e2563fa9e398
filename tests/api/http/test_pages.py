"""Without keys: no page of somebody else's may use the server, whatever its browser is told of names."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from ggufd.models import hub
from ggufd.settings import access, api_settings, sources
from tests.support.fakes.api_client import Api, error_of, ring_of, running
from tests.support.fakes.fake_engine import FakeEngine

BODY = {"prompt": "a"}


async def answered(api: Api, host: str, **headers: str) -> httpx.Response:
    return await api.post("/v1/completions", BODY, headers={"host": host, **headers})


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8080",
        "localhost.",
        "app.localhost:8080",
        "127.0.0.1:8080",
        "127.0.0.2",
        "[::1]:8080",
        "[::1]",
        "192.168.1.5",
        "host.docker.internal:8080",
        "host.containers.internal",
        "",
    ],
)
async def test_what_means_this_machine_is_answered(host: str) -> None:
    async with running(allowed_hosts=()) as api:
        assert (await answered(api, host)).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example:8080",
        "127.0.0.1.evil.example",
        "evillocalhost",
        "evil.example:8080@localhost:8080x",
        "[::1",
        "[evil.example]",
    ],
)
async def test_a_name_that_was_rebound_to_us_is_refused(host: str) -> None:
    async with running(allowed_hosts=()) as api:
        response = await answered(api, host)
        assert error_of(response, 403)["code"] == "foreign_page"
        assert "--allowed-hosts" in response.text
        assert api.engine.requests == []
        assert error_of(await api.http.get("/health", headers={"host": host}), 403)


async def test_configured_names_are_answered() -> None:
    async with running(allowed_hosts=("Llm.Home", "b")) as api:
        assert (await answered(api, "llm.home:443")).status_code == 200
        assert (await answered(api, "other.home")).status_code == 403
    async with running(allowed_hosts=("*",)) as api:
        assert (await answered(api, "other.home")).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost:3000", "null", "file://"])
async def test_a_page_of_another_origin_is_refused_even_where_it_could_not_read(origin: str) -> None:
    async with running(allowed_hosts=()) as api:
        headers = {"origin": origin, "content-type": "text/plain"}
        response = await answered(api, "127.0.0.1:8080", **headers)
        assert error_of(response, 403)["code"] == "foreign_page"
        assert "--cors-origins" in response.text
        assert api.engine.requests == []


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8080", "https://127.0.0.1:8080", "moz-extension://a-b-c"])
async def test_our_own_pages_and_extensions_may_call(origin: str) -> None:
    async with running(allowed_hosts=()) as api:
        assert (await answered(api, "127.0.0.1:8080", origin=origin)).status_code == 200


async def test_configured_origins_may_call() -> None:
    async with running(allowed_hosts=(), cors_origins=("http://page",)) as api:
        response = await answered(api, "127.0.0.1", origin="http://page")
        assert response.headers["access-control-allow-origin"] == "http://page"
        assert (await answered(api, "127.0.0.1", origin="http://page.evil")).status_code == 403
    async with running(allowed_hosts=(), cors_origins=("*",)) as api:
        assert (await answered(api, "127.0.0.1", origin="http://any")).status_code == 200


@pytest.mark.parametrize("has_keys", [False, True])
async def test_pages_of_this_machine_may_call_where_localhost_is_configured(has_keys: bool) -> None:
    host = {"host": "test.localhost"}
    asked = {**host, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    settings: dict[str, Any] = {"keys": ring_of("k")} if has_keys else {"allowed_hosts": ()}
    async with running(cors_origins=("localhost",), **settings) as api:
        for origin in ("http://localhost", "https://localhost:8080", "http://127.0.0.1:3000", "http://[::1]:3000"):
            response = await api.http.options("/v1/completions", headers={"origin": origin, **asked})
            assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, origin)
            headers = {"origin": origin, **host, "x-api-key": "k"}
            assert (await api.http.get("/v1/models", headers=headers)).status_code == 200
        for origin in (
            "http://evil.com",
            "http://notlocalhost",
            "http://localhost.evil.com",
            "http://localhost:1@evil",
        ):
            response = await api.http.options("/v1/completions", headers={"origin": origin, **asked})
            assert response.status_code == 200
            assert "access-control-allow-origin" not in response.headers
            headers = {"origin": origin, **host, "x-api-key": "k"}
            response = await api.http.get("/v1/models", headers=headers)
            assert response.status_code == (200 if has_keys else 403)
            assert "access-control-allow-origin" not in response.headers


async def test_pages_elsewhere_are_told_nothing_by_default() -> None:
    headers = {"origin": "http://page", "access-control-request-method": "POST"}
    async with running(FakeEngine(), keys=ring_of("k")) as api:
        response = await api.http.options("/v1/completions", headers=headers)
        assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("flags", "hosts"),
    [
        ({}, ()),
        ({"allowed_hosts": "a,b"}, ("a", "b")),
        ({"api_key": "k"}, None),
        ({"host": "0.0.0.0", "allow_unauthenticated": True}, None),
        ({"host": "0.0.0.0", "allow_unauthenticated": True, "allowed_hosts": "a"}, ("a",)),
    ],
)
def test_it_is_the_loopback_without_keys_that_is_guarded(
    flags: dict[str, object], hosts: tuple[str, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sources.load(None, flags, {})
    made = api_settings.api_config(config, hub.find(""), access.of(config.server))
    assert made.allowed_hosts == hosts
