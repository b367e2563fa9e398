"""Who sees whose rows in the live view: by key and role, by address, and behind proxies."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from ggufd.api.app import create_app
from ggufd.api.services.settings import ApiConfig
from ggufd.errors import RequestEnded
from ggufd.keys.principal import Principal
from ggufd.keys.ring import Key, KeyRing, Role, digest_of
from tests.support.fakes.fake_engine import FakeEngine, FakeText

KEYS = KeyRing([Key("alice", digest_of("a")), Key("bob", digest_of("b")), Key("root", digest_of("r"), Role.ADMIN)])
PLAIN: dict[str, str] = {}
FORWARDED = {"x-forwarded-for": "203.0.113.9"}


class Stream:
    """An open request of somebody, that can be refused."""

    def __init__(self, person: str) -> None:
        self.principal = Principal(person, person)
        self.refusals: list[Exception] = []

    def refuse(self, error: Exception) -> None:
        self.refusals.append(error)


async def delete(
    stream: Stream, headers: dict[str, str], address: str = "127.0.0.1", request_id: str = "7", **settings: Any
) -> httpx.Response:
    """The answer to who wants to end `stream`, which is request 7."""
    engine = FakeEngine()
    engine.streams[7] = stream  # type: ignore[assignment]
    app = create_app(engine, FakeText(), ApiConfig("fake-model", **settings))
    transport = httpx.ASGITransport(app, client=(address, 1234))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        return await http.delete(f"/v1/requests/{request_id}", headers=headers)


@pytest.mark.parametrize(
    ("key", "owner", "status"),
    [("a", "alice", 200), ("a", "bob", 404), ("b", "alice", 404), ("r", "alice", 200), ("r", "root", 200)],
)
async def test_a_key_ends_its_own_requests_and_an_admin_any(key: str, owner: str, status: int) -> None:
    stream = Stream(owner)
    answer = await delete(stream, {"x-api-key": key}, keys=KEYS)
    assert answer.status_code == status
    assert len(stream.refusals) == (status == 200)


async def test_what_is_not_ones_own_is_as_if_it_were_not_there() -> None:
    there = await delete(Stream("bob"), {"x-api-key": "a"}, keys=KEYS)
    missing = await delete(Stream("bob"), {"x-api-key": "a"}, keys=KEYS, request_id="8")
    assert there.json()["error"]["message"].replace("7", "8") == missing.json()["error"]["message"]


@pytest.mark.parametrize("request_id", ["x", "-7", "7.0", "%C2%B2", "99999999999999999999", "\u0667"])
async def test_what_is_no_number_of_a_request_is_not_found(request_id: str) -> None:
    assert (await delete(Stream("127.0.0.1"), PLAIN, request_id=request_id)).status_code == 404


async def test_who_sent_it_is_told_who_ended_it() -> None:
    own, anothers = Stream("alice"), Stream("alice")
    await delete(own, {"x-api-key": "a"}, keys=KEYS)
    await delete(anothers, {"x-api-key": "r"}, keys=KEYS)
    (first,), (second,) = own.refusals, anothers.refusals
    assert isinstance(first, RequestEnded)
    assert "with the key that sent it" in first.message
    assert isinstance(second, RequestEnded)
    assert "by who runs the server" in second.message
    assert "root" not in second.message


@pytest.mark.parametrize(
    ("address", "headers", "settings", "owner", "status"),
    [
        ("127.0.0.1", PLAIN, {}, "192.168.0.9", 200),
        ("::1", PLAIN, {}, "192.168.0.9", 200),
        # The server listens beyond this machine: nobody sees more than his address.
        ("127.0.0.1", PLAIN, {"listens_beyond": True}, "192.168.0.9", 404),
        ("192.168.0.9", PLAIN, {"listens_beyond": True}, "192.168.0.9", 200),
        ("192.168.0.8", PLAIN, {"listens_beyond": True}, "192.168.0.9", 404),
        ("192.168.0.8", PLAIN, {}, "192.168.0.9", 404),
        # A proxy on this machine that the settings do not speak of: all come from its address.
        ("127.0.0.1", FORWARDED, {}, "127.0.0.1", 404),
        ("127.0.0.1", FORWARDED, {}, "203.0.113.9", 404),
        ("127.0.0.1", {"forwarded": "for=203.0.113.9"}, {}, "127.0.0.1", 404),
        # One that is trusted: the address is the client's.
        ("203.0.113.9", FORWARDED, {"listens_beyond": True, "trusts_proxies": True}, "203.0.113.9", 200),
        ("203.0.113.9", FORWARDED, {"listens_beyond": True, "trusts_proxies": True}, "203.0.113.8", 404),
    ],
)
async def test_without_keys_an_address_is_a_person(
    address: str, headers: dict[str, str], settings: dict[str, Any], owner: str, status: int
) -> None:
    assert (await delete(Stream(owner), headers, address, **settings)).status_code == status
