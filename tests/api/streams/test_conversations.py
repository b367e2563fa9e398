"""Resumable streams under llama-server's names: a header that names them, and bytes to go on from."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from tests.api.streams.test_resumable import CHAT, HELLO, Client, a_held_server, a_server, close_gate
from tests.support.fakes.api_client import error_of
from tests.support.fakes.api_server import Served, wait_until

NAME = "conv-1::org/model:Q8_0"
"""As its web page makes them: with the model's name, which has slashes."""

PATH = f"/v1/stream?conv_id={quote(NAME, safe='')}"


@pytest.fixture(name="server")
def fixture_server() -> Iterator[Served]:
    with a_server() as served:
        yield served


@pytest.fixture(name="held")
def fixture_held() -> Iterator[Served]:
    with a_held_server() as served:
        yield served


def start(client: Client, n_bytes: int, name: str = NAME) -> tuple[str, bytes]:
    """The id and the first bytes of a stream that only the header makes resumable."""
    body = {"messages": HELLO, "resumable": None}
    headers, data = client.start(CHAT, body, n_bytes, **{"X-Conversation-Id": name})
    return headers["x-ggufd-stream"], data


@pytest.mark.parametrize("n_bytes", [1, 300, 999])
def test_a_client_goes_on_from_the_bytes_that_it_has(held: Served, n_bytes: int) -> None:
    client = Client(held)
    stream_id, data = start(client, n_bytes)
    assert held.engine.open
    held.in_loop(held.engine.go_on)
    rest = client.ask("GET", f"{PATH}&from={len(data)}")
    assert rest.headers["content-type"].startswith("text/event-stream")
    whole = client.ask("GET", f"{PATH}&from=0").content
    assert data + rest.content == whole
    assert client.go_on(stream_id, None) == whole
    assert client.ask("GET", PATH).content == whole
    assert client.ask("GET", f"{PATH}&from={len(whole)}").status_code == 204


def test_there_are_no_pings_to_be_counted(server: Served) -> None:
    close_gate(server)
    client = Client(server)
    with client._stream(
        "POST", CHAT, {"X-Conversation-Id": NAME}, json={"messages": HELLO, "stream": True}
    ) as response:
        time.sleep(0.2)
        server.in_loop(server.engine.gate.set)
        data = b"".join(response.iter_raw())
    assert b"ping" not in data
    assert data == client.ask("GET", PATH).content


def test_a_new_stream_of_a_conversation_ends_the_one_before(server: Served) -> None:
    client = Client(server)
    first, _ = start(client, 300)
    second, _ = start(client, 300)
    wait_until(lambda: len(server.engine.aborted) == 1)
    assert [stream["id"] for stream in client.streams()] == [second]
    assert client.ask("GET", f"/v1/streams/{first}").status_code == 404
    assert client.ask("GET", PATH).headers["x-ggufd-stream"] == second


def test_the_flag_goes_before_the_header(server: Served) -> None:
    body = {"messages": HELLO, "resumable": False}
    headers, _ = Client(server).start(CHAT, body, 300, **{"X-Conversation-Id": NAME})
    assert "x-ggufd-stream" not in headers
    wait_until(lambda: not server.engine.open)


def test_lookup_tells_of_those_that_are_named_exactly_or_with_a_model(server: Served) -> None:
    client = Client(server)
    before = int(time.time())
    for name in (NAME, "conv-1", "conv-10", "other"):
        start(client, 300, name)

    def looked_up(*names: str) -> dict[str, dict[str, object]]:
        found = client.ask("POST", "/v1/streams/lookup", json={"conversation_ids": names}).json()
        return {one["conversation_id"]: one for one in found}

    assert set(looked_up("conv-1")) == {"conv-1", NAME}
    assert set(looked_up(NAME, "nothing", "")) == {NAME}
    assert looked_up() == {}
    client.wait_ended()
    stream = looked_up(NAME)[NAME]
    assert (stream["is_done"], stream["total_bytes"]) == (True, len(client.ask("GET", PATH).content))
    assert before <= int(str(stream["started_at"])) <= int(str(stream["completed_at"])) <= time.time()


def test_delete_ends_it_and_says_no_more_than_that_it_is_over(server: Served) -> None:
    client = Client(server)
    start(client, 300)
    for _ in range(2):
        response = client.ask("DELETE", PATH)
        assert (response.status_code, response.content) == (204, b"")
    wait_until(lambda: not server.engine.open)
    assert client.ask("GET", PATH).status_code == 404


def test_bytes_that_fell_out_are_gone() -> None:
    with a_server(step_s=0.0, max_bytes_each=3000) as server:
        client = Client(server)
        _, data = start(client, 10**9)
        client.wait_ended()
        assert error_of(client.ask("GET", PATH), 410)["code"] == "stream_gone"
        assert client.ask("GET", f"{PATH}&from={len(data) - 1000}").content == data[-1000:]


@pytest.mark.parametrize(
    ("method", "path", "param"),
    [
        ("GET", "/v1/stream", "conv_id"),
        ("GET", "/v1/stream?conv_id=", "conv_id"),
        ("DELETE", "/v1/stream", "conv_id"),
        ("GET", f"{PATH}&from=x", "from"),
        ("GET", f"{PATH}&from=-1", "from"),
        ("GET", f"{PATH}&from=999999999", "from"),
        ("POST", "/v1/streams/lookup", "conversation_ids"),
    ],
)
def test_what_is_wrong_is_named(server: Served, method: str, path: str, param: str) -> None:
    client = Client(server)
    start(client, 300)
    body = {"content": json.dumps({}).encode()} if method == "POST" else {}
    assert error_of(client.ask(method, path, **body), 400)["param"] == param


@pytest.mark.parametrize("name", ["a b", "x" * 257])
def test_a_name_that_cannot_be_one_is_refused(server: Served, name: str) -> None:
    response = Client(server).ask(
        "POST", CHAT, json={"messages": HELLO, "stream": True}, headers={"X-Conversation-Id": name}
    )
    assert "X-Conversation-Id" in error_of(response, 400)["message"]
    wait_until(lambda: not server.engine.open)
