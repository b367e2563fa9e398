"""A server of a cluster: who has no token is not answered, and who has it is believed for whom it asks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from ggufd.api.live.sight import Sight
from ggufd.errors import ConfigError
from ggufd.models import hub
from ggufd.settings import access, api_settings, sources
from ggufd.settings.config import ServerSection
from tests.support.fakes.api_client import Api, error_of, ring_of, running

TOKEN = "t" * 31 + "!"
PEER = {"x-ggufd-peer": TOKEN}
BODY = {"prompt": "a"}
MODEL = hub.ModelFile(Path("m.gguf"), 0)
IN_CLUSTER: dict[str, Any] = {"peer_token": TOKEN, "listens_beyond": True, "trusts_proxies": True}


async def asked(api: Api, **headers: str) -> httpx.Response:
    return await api.post("/v1/completions", BODY, headers=headers)


def add_probe(api: Api, look: Callable[[Request], None]) -> None:
    """A route, /probe, that shows its requests to `look`."""

    async def probe(request: Request) -> Response:
        look(request)
        return Response()

    api.app.router.add_route("/probe", probe)


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/ready", "/v1/health", "/health//"])
async def test_health_probes_need_no_token(path: str) -> None:
    async with running(**IN_CLUSTER) as api:
        assert (await api.http.get(path)).status_code == 200
        assert (await api.http.head(path)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/favicon.ico"),
        ("GET", "/metrics"),
        ("GET", "/v1/models"),
        ("GET", "/slots"),
        ("GET", "/v1/live"),
        ("GET", "/peers/load"),
        ("GET", "/nowhere"),
        ("GET", "/health/../v1/models"),
        ("OPTIONS", "/v1/chat/completions"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/health/x"),
    ],
)
@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "Bearer " + TOKEN])
async def test_nothing_else_is_answered_without_the_token(method: str, path: str, token: str | None) -> None:
    async with running(**IN_CLUSTER, keys=ring_of("admin")) as api:
        headers = {"x-api-key": "admin", "authorization": f"Bearer {TOKEN}"}
        headers |= {} if token is None else {"x-ggufd-peer": token}
        response = await api.http.request(method, path, headers=headers)
        error = error_of(response, 401)
        assert (error["code"], error["type"]) == ("invalid_peer_token", "authentication_error")
        assert "cluster's address" in error["message"]


async def test_the_engine_hears_of_no_stranger() -> None:
    async with running(**IN_CLUSTER) as api:
        assert (await asked(api)).status_code == 401
        assert api.engine.requests == []
        assert (await asked(api, **PEER)).status_code == 200
        assert len(api.engine.requests) == 1


async def test_the_token_is_no_key_and_a_key_is_no_token() -> None:
    async with running(**IN_CLUSTER, keys=ring_of("admin")) as api:
        assert error_of(await asked(api, **PEER), 401)["code"] == "invalid_api_key"
        assert error_of(await asked(api, **PEER, **{"x-api-key": TOKEN}), 401)["code"] == "invalid_api_key"
        assert error_of(await asked(api, **{"x-api-key": "admin"}), 401)["code"] == "invalid_peer_token"
        assert (await asked(api, **PEER, **{"x-api-key": "admin"})).status_code == 200
        assert (await api.http.get("/metrics", headers=PEER)).status_code == 401


async def test_an_error_has_the_shape_of_its_api() -> None:
    async with running(**IN_CLUSTER) as api:
        error = (await api.http.post("/v1/messages", json={})).json()
        assert (error["type"], error["error"]["type"]) == ("error", "authentication_error")


async def test_without_a_cluster_the_header_and_the_routes_are_nothing() -> None:
    async with running() as api:
        assert (await asked(api)).status_code == 200
        assert (await asked(api, **{"x-ggufd-peer": "whatever", "x-forwarded-for": "9.9.9.9"})).status_code == 200
        assert [one.principal.person for one in api.engine.requests] == ["127.0.0.1", "127.0.0.1"]
        assert error_of(await api.http.get("/peers/load"), 404)


@pytest.mark.parametrize(
    ("told", "person"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8::1", "2001:db8::1"),
        ("127.0.0.1, 203.0.113.7", "203.0.113.7"),
        (" 203.0.113.7 ", "203.0.113.7"),
        ("", "10.0.0.2"),
        ("unknown", "10.0.0.2"),
        ("203.0.113.7:4711", "10.0.0.2"),
    ],
)
async def test_a_peer_is_believed_whose_request_it_is(told: str, person: str) -> None:
    async with running(**IN_CLUSTER, client=("10.0.0.2", 5)) as api:
        assert (await asked(api, **PEER, **{"x-forwarded-for": told})).status_code == 200
        principal = api.engine.requests[0].principal
        assert (principal.person, principal.account) == (person, person)


@pytest.mark.parametrize(
    ("sent", "chat"),
    [("ab" * 16, "ab" * 16), ("", ""), ("AB" * 16, ""), ("ab" * 15, ""), ("ab" * 17, ""), ("zz" * 16, "")],
)
async def test_the_engine_is_told_the_conversation_that_the_cluster_names(sent: str, chat: str) -> None:
    async with running(**IN_CLUSTER) as api:
        assert (await asked(api, **PEER, **{"x-ggufd-chat": sent})).status_code == 200
        assert [one.chat for one in api.engine.requests] == [chat]
    async with running() as api:
        assert (await asked(api, **{"x-ggufd-chat": sent})).status_code == 200
        assert [one.chat for one in api.engine.requests] == [""]


@pytest.mark.parametrize("told", ["127.0.0.1", "::1", "203.0.113.7", ""])
async def test_nobody_is_on_this_machine_through_an_ingress_on_it(told: str) -> None:
    """Of somebody on the machine the live view tells everybody's rows."""
    async with running(**IN_CLUSTER, client=("127.0.0.1", 5)) as api:
        seen: list[bool] = []
        add_probe(api, lambda request: seen.append(Sight.of(request).sees_all))
        headers = PEER | ({"x-forwarded-for": told} if told else {})
        assert (await api.http.get("/probe", headers=headers)).status_code == 200
        assert seen == [False]


async def test_the_token_reaches_no_handler_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with running(**IN_CLUSTER) as api:
        seen: list[str] = []
        add_probe(api, lambda request: seen.extend(request.headers))
        assert (await api.http.get("/probe", headers=PEER)).status_code == 200
        assert "x-ggufd-peer" not in seen
        assert "host" in seen
        await asked(api)
        assert TOKEN not in caplog.text
        assert TOKEN not in repr(api.app.state.services.config)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_token_is_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert access.peer_token(ServerSection(peer_token_file=str(file))) == TOKEN
    assert access.peer_token(ServerSection()) is None
    made = api_settings.api_config(sources.load(None, {"peer_token_file": str(file)}, {}), MODEL)
    assert (made.peer_token, made.listens_beyond, made.trusts_proxies) == (TOKEN, True, True)


@pytest.mark.parametrize("text", ["", "\n", "short", "two words of more than thirty-two characters", "ü" * 40])
def test_a_token_that_is_none_is_refused_with_what_to_do(text: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match="openssl rand -hex 32"):
        access.peer_token(ServerSection(peer_token_file=str(file)))


def test_a_token_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        access.peer_token(ServerSection(peer_token_file=str(tmp_path / "none")))


def test_a_server_without_keys_may_listen_to_its_cluster() -> None:
    assert access.of(ServerSection(host="0.0.0.0", peer_token_file="token")) is None
    with pytest.raises(ConfigError, match="no key is set"):
        access.of(ServerSection(host="0.0.0.0"))
