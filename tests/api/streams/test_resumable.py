"""Streams that outlive their client, over real sockets: every API family, every way that they end."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from ggufd.api.services.settings import StreamLimits
from ggufd.engine.messages.events import Turn
from ggufd.errors import EngineFailure
from ggufd.keys.ring import Key, KeyRing, Role, digest_of
from tests.api.ops.test_metrics import of, parsed
from tests.support.fakes.api_client import error_of, running
from tests.support.fakes.api_server import Served, serving, wait_until
from tests.support.fakes.fake_engine import FakeEngine, FakeText
from tests.support.limits import ANSWER_S

HELLO = [{"role": "user", "content": "hi"}]
TEXT = "Hello wörld, this is an answer that takes some time 🙂"
CHAT = "/v1/chat/completions"

FAMILIES: dict[str, tuple[dict[str, Any], str]] = {
    CHAT: ({"messages": HELLO, "n": 2, "stream_options": {"include_usage": True}}, "chatcmpl-"),
    "/v1/completions": ({"prompt": ["a", "b"], "logprobs": 2, "echo": True}, "cmpl-"),
    "/v1/responses": ({"input": "hi"}, "resp_"),
    "/v1/messages": ({"messages": HELLO, "max_tokens": 99}, "msg_"),
    "/completion": ({"prompt": "a"}, "cmpl-"),
    "/infill": ({"input_prefix": "a", "input_suffix": "b"}, "cmpl-"),
    "/api/extra/generate/stream": ({"prompt": "a", "max_length": 99}, "cmpl-"),
}
"""A body of each, and how the ids of its streams begin."""


@contextmanager
def a_server(step_s: float = 0.01, ring: KeyRing | None = None, **limits: Any) -> Iterator[Served]:
    engine = FakeEngine([TEXT, "another"])
    engine.step_s = step_s
    with serving(engine, has_infill=True, keys=ring, streams=replace(StreamLimits(), **limits)) as served:
        yield served


@pytest.fixture(name="server")
def fixture_server() -> Iterator[Served]:
    with a_server() as served:
        yield served


@contextmanager
def a_held_server() -> Iterator[Served]:
    """A server that holds every answer amid it, until its engine is to go on."""
    with a_server(step_s=0.0) as served:
        served.engine.hold_after = len(TEXT) // 2
        yield served


@pytest.fixture(name="held")
def fixture_held() -> Iterator[Served]:
    with a_held_server() as served:
        yield served


class Client:
    """A client of the server, which may be cut off. `key` is its API key."""

    def __init__(self, server: Served, key: str = "none") -> None:
        self._server = server
        self._headers = {"x-api-key": key}

    def start(self, path: str, body: dict[str, Any], n_bytes: int, **headers: str) -> tuple[httpx.Headers, bytes]:
        """The headers and at least the first bytes of a stream, whose connection is closed then."""
        with self._stream("POST", path, json={"stream": True, "resumable": True, **body}, headers=headers) as response:
            return response.headers, taken(response, n_bytes)

    def go_on(self, stream_id: str, last: int | None, n_bytes: int | None = None) -> bytes:
        """What comes after an event, to the end or cut off after some bytes."""
        headers = {} if last is None else {"Last-Event-ID": str(last)}
        with self._stream("GET", f"/v1/streams/{stream_id}", headers=headers) as response:
            return b"" if response.status_code == 204 else taken(response, n_bytes)

    @contextmanager
    def _stream(self, method: str, path: str, headers: dict[str, str], **options: Any) -> Iterator[httpx.Response]:
        url = f"{self._server.url}{path}"
        with (
            httpx.Client(trust_env=False, timeout=10) as client,
            client.stream(method, url, headers={**self._headers, **headers}, **options) as response,
        ):
            if response.status_code >= 300:
                response.read()
                raise AssertionError(f"{response.status_code} {response.text}")
            yield response

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {**self._headers, **options.pop("headers", {})}
        return httpx.request(
            method, f"{self._server.url}{path}", trust_env=False, headers=headers, **options, timeout=ANSWER_S
        )

    def streams(self) -> list[dict[str, Any]]:
        data: list[dict[str, Any]] = self.ask("GET", "/v1/streams").json()["data"]
        return data

    def wait_ended(self) -> None:
        wait_until(lambda: all(one["status"] == "ended" for one in self.streams()))


def taken(response: httpx.Response, n_bytes: int | None) -> bytes:
    data = b""
    for piece in response.iter_raw():
        data += piece
        if n_bytes is not None and len(data) >= n_bytes:
            break
    return data


def whole_events(data: bytes) -> list[bytes]:
    """The events that arrived whole, without comments and Anthropic's pings, which are no part of the answer."""
    blocks = re.sub(rb"(?m)^:.*\n", b"", data).split(b"\n\n")[:-1]
    return [block.lstrip(b"\n") for block in blocks if block.strip() and b'"ping"' not in block]


def last_of(events: list[bytes]) -> int | None:
    return int(events[-1].split(b"\n")[0].removeprefix(b"id: ")) if events else None


def without_ids(data: bytes) -> list[str]:
    """What the events say, without what differs between two answers of the same text."""
    told = b"\n".join(re.sub(rb"^id: \d+\n", b"", event) for event in whole_events(data)).decode()
    told = re.sub(r'"(id|item_id|message_id)":"[a-z]+[_-]\w+"', r'"\1":"ID"', told)
    told = re.sub(r'"(created|created_at|completed_at)":\d+', r'"\1":0', told)
    return told.splitlines()


@pytest.mark.parametrize("path", FAMILIES)
def test_a_client_that_was_cut_off_goes_on_where_it_was(held: Served, path: str) -> None:
    body, prefix = FAMILIES[path]
    client = Client(held)
    headers, data = client.start(path, body, 700)
    stream_id = headers["x-ggufd-stream"]
    assert stream_id.startswith(prefix)
    if prefix != "cmpl-" or path == "/v1/completions":
        assert stream_id.encode() in data, "it is the response's own id"
    events = whole_events(data)
    assert held.engine.open, "it runs on"
    held.in_loop(held.engine.go_on)
    events += whole_events(client.go_on(stream_id, last_of(events)))
    assert held.engine.aborted == []
    whole = client.go_on(stream_id, None)
    assert events == whole_events(whole)
    assert [last_of([event]) for event in events] == list(range(len(events)))
    plain = client.ask("POST", path, json={**body, "stream": True})
    assert "x-ggufd-stream" not in plain.headers
    assert b"\nid: " not in plain.content
    assert without_ids(whole) == without_ids(plain.content)


@pytest.mark.parametrize("n_bytes", [1, 310, 333, 2000])
def test_cut_off_again_and_again(server: Served, n_bytes: int) -> None:
    """At bytes that are no ends of events: what came of an unfinished one is dropped, and comes again."""
    server.engine.step_s = 0.002
    client = Client(server)
    headers, data = client.start("/v1/completions", {"prompt": "a"}, n_bytes)
    events = whole_events(data)
    for _ in range(500):
        if events and b"[DONE]" in events[-1]:
            break
        events += whole_events(client.go_on(headers["x-ggufd-stream"], last_of(events), n_bytes))
    assert events == whole_events(client.go_on(headers["x-ggufd-stream"], None))
    text = "".join(json.loads(event.split(b"data: ")[1])["choices"][0]["text"] for event in events[:-1])
    assert text == TEXT


def test_two_readers_at_once_are_both_served(server: Served) -> None:
    client = Client(server)
    headers, data = client.start("/v1/completions", {"prompt": "a"}, 400)
    stream_id, events = headers["x-ggufd-stream"], whole_events(data)
    told: dict[int | None, list[bytes]] = {}

    def read(last: int | None) -> None:
        told[last] = whole_events(client.go_on(stream_id, last))

    readers = [threading.Thread(target=read, args=(last,)) for last in (None, last_of(events))]
    for reader in readers:
        reader.start()
    wait_until(lambda: client.streams()[0]["readers"] == 2)
    for reader in readers:
        reader.join()
    assert told[None] == events + told[last_of(events)]
    assert told[None][-1].endswith(b"data: [DONE]")


@pytest.mark.parametrize("path", FAMILIES)
@pytest.mark.parametrize("resumable", [False, None])
def test_without_the_flag_stop_means_stop(server: Served, path: str, *, resumable: bool | None) -> None:
    headers, _ = Client(server).start(path, {**FAMILIES[path][0], "resumable": resumable}, 300)
    assert "x-ggufd-stream" not in headers
    wait_until(lambda: not server.engine.open)
    assert sorted(server.engine.aborted) == sorted(request.request_id for request in server.engine.requests)


def test_the_setting_is_for_requests_that_say_nothing() -> None:
    with a_server(is_default=True) as server:
        client = Client(server)
        for resumable, is_kept in ((None, True), (False, False)):
            headers, _ = client.start(CHAT, {"messages": HELLO, "resumable": resumable}, 500)
            assert ("x-ggufd-stream" in headers) is is_kept
        assert len(client.streams()) == 1
        client.wait_ended()
        assert len(server.engine.aborted) == 1
        assert client.ask("POST", CHAT, json={"messages": HELLO}).status_code == 200
        assert client.ask("POST", "/api/chat", json={"messages": HELLO}).status_code == 200


def test_what_only_the_setting_asks_for_is_an_ordinary_stream_where_too_many_run() -> None:
    with a_server(is_default=True, max_streams_per_key=1) as server:
        client = Client(server)
        client.start(CHAT, {"messages": HELLO, "resumable": None}, 500)
        headers, _ = client.start(CHAT, {"messages": HELLO, "resumable": None}, 500)
        assert "x-ggufd-stream" not in headers


def test_one_too_many_is_refused_and_computes_nothing() -> None:
    with a_server(max_streams_per_key=1) as server:
        client = Client(server)
        client.start(CHAT, {"messages": HELLO}, 500)
        response = client.ask("POST", CHAT, json={"messages": HELLO, "stream": True, "resumable": True})
        error = error_of(response, 429)
        assert error["param"] == "resumable"
        assert "1 resumable streams of this key are running" in error["message"]
        assert response.headers["retry-after"]
        wait_until(lambda: len(server.engine.open) <= 1)
        assert len(server.engine.aborted) == 1


async def test_what_is_no_stream_of_events_cannot_be_resumable() -> None:
    async with running(text=FakeText(has_infill=True)) as api:
        for path, body in {
            **{path: {**body, "stream": False} for path, (body, _) in FAMILIES.items() if "generate" not in path},
            "/api/v1/generate": {"prompt": "a"},
            "/api/generate": {"prompt": "a"},
            "/api/chat": {"messages": HELLO},
        }.items():
            response = await api.post(path, {**body, "resumable": True})
            assert response.status_code == 400, path
            assert "'resumable': only a stream of server-sent events" in response.json()["error"]["message"]
            assert (await api.post(path, {**body, "resumable": "yes"})).status_code == 400
        assert api.engine.requests == []


class TestWho:
    @pytest.mark.parametrize("role", Role)
    def test_another_key_is_told_what_it_is_told_of_nothing(self, role: Role) -> None:
        ring = KeyRing((Key("alice", digest_of("a")), Key("bob", digest_of("b"), role)))
        with a_server(ring=ring) as server:
            alice, bob = Client(server, "a"), Client(server, "b")
            headers, _ = alice.start(CHAT, {"messages": HELLO}, 500, **{"x-conversation-id": "c"})
            stream_id = headers["x-ggufd-stream"]
            other = f"{stream_id[:-1]}{'1' if stream_id.endswith('0') else '0'}"
            for method in ("GET", "DELETE"):
                told = [bob.ask(method, f"/v1/streams/{one}") for one in (stream_id, other)]
                assert [one.status_code for one in told] == [404, 404]
                assert told[0].text.replace(stream_id, other) == told[1].text
            assert bob.ask("GET", "/v1/stream?conv_id=c").status_code == 404
            assert bob.ask("POST", "/v1/streams/lookup", json={"conversation_ids": ["c"]}).json() == []
            assert bob.ask("DELETE", "/v1/stream?conv_id=c").status_code == 204
            assert bob.streams() == []
            assert server.engine.aborted == []
            assert alice.streams()[0]["status"] == "running"
            assert httpx.get(f"{server.url}/v1/streams", trust_env=False, timeout=ANSWER_S).status_code == 401

    @pytest.mark.parametrize("is_read", [False, True])
    def test_a_revoked_keys_stream_ends_and_is_gone(self, *, is_read: bool) -> None:
        ring = KeyRing((Key("alice", digest_of("a")), Key("bob", digest_of("b"))))
        with a_server(ring=ring) as server:
            alice = Client(server, "a")
            headers, _ = alice.start(CHAT, {"messages": HELLO}, 500)
            stream_id, told = headers["x-ggufd-stream"], list[bytes]()
            reader = threading.Thread(target=lambda: told.append(alice.go_on(stream_id, None)))
            if is_read:
                reader.start()
                wait_until(lambda: alice.streams()[0]["readers"] == 1)
            server.in_loop(lambda: ring.replace(key for key in ring if key.name == "bob"))
            wait_until(lambda: not server.engine.open)
            assert len(server.engine.aborted) == 1
            if is_read:
                reader.join(5)
                assert json.loads(whole_events(told[0])[-1].split(b"data: ")[1])["error"]["code"] == "invalid_api_key"
            server.in_loop(lambda: ring.replace([*ring, Key("alice", digest_of("a"))]))
            wait_until(lambda: alice.ask("GET", "/v1/models").status_code == 200)
            assert alice.ask("GET", f"/v1/streams/{stream_id}").status_code == 404
            assert alice.streams() == []


class TestEnds:
    def test_delete_ends_the_generation_and_its_readers_get_the_end(self, server: Served) -> None:
        client = Client(server)
        headers, _ = client.start("/v1/completions", {"prompt": "a"}, 400)
        stream_id, told = headers["x-ggufd-stream"], list[bytes]()
        reader = threading.Thread(target=lambda: told.append(client.go_on(stream_id, None)))
        reader.start()
        wait_until(lambda: client.streams()[0]["readers"] == 1)
        response = client.ask("DELETE", f"/v1/streams/{stream_id}")
        assert response.json() == {"id": stream_id, "object": "stream", "deleted": True}
        wait_until(lambda: not server.engine.open)
        reader.join(5)
        assert told[0].endswith(b"data: [DONE]\n\n")
        assert b'"finish_reason":"length"' in told[0]
        assert client.ask("DELETE", f"/v1/streams/{stream_id}").status_code == 404
        assert client.streams() == []

    @pytest.mark.parametrize(
        ("path", "body"), [("/api/extra/abort", {}), ("/v1/internal/stop-generation", {})], ids=["kobold", "ooba"]
    )
    def test_routes_that_abort_without_an_id_find_it(self, server: Served, path: str, body: dict[str, Any]) -> None:
        client = Client(server)
        headers, _ = client.start("/v1/completions", {"prompt": "a"}, 400)
        assert client.ask("POST", path, json=body).status_code == 200
        client.wait_ended()
        assert len(server.engine.aborted) == 1
        assert client.go_on(headers["x-ggufd-stream"], None).endswith(b"data: [DONE]\n\n")

    def test_an_error_is_kept_for_who_comes_back(self, server: Served) -> None:
        server.engine.error, server.engine.error_after = EngineFailure("the engine died"), 8
        client = Client(server)
        headers, data = client.start(CHAT, {"messages": HELLO}, 600)
        client.wait_ended()
        events = whole_events(client.go_on(headers["x-ggufd-stream"], last_of(whole_events(data))))
        assert json.loads(events[-1].split(b"data: ")[1])["error"]["message"] == "the engine died"
        assert client.go_on(headers["x-ggufd-stream"], None).endswith(events[-1] + b"\n\n")

    def test_an_answer_that_nobody_reads_ends_in_time_and_says_so(self) -> None:
        with a_server(unread_s=0.2) as server:
            client = Client(server)
            headers, _ = client.start(CHAT, {"messages": HELLO}, 500)
            wait_until(lambda: not server.engine.open)
            assert len(server.engine.aborted) == 1
            (stream,) = client.streams()
            assert stream["status"] == "ended"
            last = whole_events(client.go_on(headers["x-ggufd-stream"], None))[-1]
            error = json.loads(last.split(b"data: ")[1])["error"]
            assert (error["code"], error["type"]) == ("stream_unread", "timeout_error")
            metrics = parsed(client.ask("GET", "/metrics").text)
            assert of(metrics, "ggufd_errors_total", code="stream_unread") == 1

    def test_an_ended_stream_is_kept_for_its_time(self) -> None:
        with a_server(step_s=0.0, kept_s=0.3) as server:
            client = Client(server)
            headers, _ = client.start("/v1/completions", {"prompt": "a"}, 10**9)
            assert client.go_on(headers["x-ggufd-stream"], None)
            assert 0 <= client.streams()[0]["expires_in_s"] <= 0.3
            wait_until(lambda: client.streams() == [])
            assert client.ask("GET", f"/v1/streams/{headers['x-ggufd-stream']}").status_code == 404


class TestWhatIsAsked:
    @pytest.fixture
    def ended(self, server: Served) -> tuple[Client, str]:
        """A stream that has ended."""
        server.engine.step_s = 0.0
        client = Client(server)
        headers, _ = client.start("/v1/completions", {"prompt": "a"}, 10**9)
        client.wait_ended()
        return client, headers["x-ggufd-stream"]

    def test_by_header_or_parameter(self, ended: tuple[Client, str]) -> None:
        client, stream_id = ended
        last = client.streams()[0]["last_event_id"]
        by_header = client.go_on(stream_id, last - 2)
        assert by_header.startswith(f"id: {last - 1}\n".encode())
        assert client.ask("GET", f"/v1/streams/{stream_id}?last_event_id={last - 2}").content == by_header

    def test_nothing_left_is_204(self, ended: tuple[Client, str]) -> None:
        client, stream_id = ended
        last = client.streams()[0]["last_event_id"]
        response = client.ask("GET", f"/v1/streams/{stream_id}", headers={"Last-Event-ID": str(last)})
        assert (response.status_code, response.content) == (204, b"")

    @pytest.mark.parametrize("last", ["x", "-1", "1.5", "9" * 20, "²", "57"])
    def test_what_is_no_id_of_its_events_is_refused(self, ended: tuple[Client, str], last: str) -> None:
        client, stream_id = ended
        response = client.ask("GET", f"/v1/streams/{stream_id}", params={"last_event_id": last})
        error = error_of(response, 400)
        assert error["param"] in ("last_event_id", "Last-Event-ID")
        assert "expected the id of an event" in error["message"] or "events so far" in error["message"]

    def test_head_is_answered_at_once(self, server: Served) -> None:
        client = Client(server)
        headers, _ = client.start("/v1/completions", {"prompt": "a"}, 400)
        response = client.ask("HEAD", f"/v1/streams/{headers['x-ggufd-stream']}")
        assert (response.status_code, response.headers["x-ggufd-stream"]) == (200, headers["x-ggufd-stream"])
        assert server.engine.open

    def test_the_list(self, ended: tuple[Client, str]) -> None:
        client, stream_id = ended
        (stream,) = client.streams()
        assert {name: stream[name] for name in ("id", "object", "status", "path", "conversation_id", "readers")} == {
            "id": stream_id,
            "object": "stream",
            "status": "ended",
            "path": "/v1/completions",
            "conversation_id": None,
            "readers": 0,
        }
        assert stream["bytes"] == len(client.go_on(stream_id, None))
        assert (stream["first_event_id"], stream["last_event_id"]) == (0, len(TEXT) + 1)

    def test_the_headers_of_the_answer_come_again(self, server: Served) -> None:
        client = Client(server)
        body = {"messages": [*HELLO, *HELLO], "top_a": 0.5}
        headers, _ = client.start(CHAT, body, 500)
        response = client.ask("GET", f"/v1/streams/{headers['x-ggufd-stream']}")
        for name, value in {"x-ggufd-repairs": "merge_same_role", "x-ggufd-ignored": "top_a"}.items():
            assert headers[name] == response.headers[name] == value


class TestMemory:
    def test_what_fell_out_is_an_error_and_the_rest_is_there(self) -> None:
        with a_server(step_s=0.0, max_bytes_each=3000) as server:
            client = Client(server)
            headers, data = client.start("/v1/completions", {"prompt": "a"}, 10**9)
            client.wait_ended()
            (stream,) = client.streams()
            assert stream["bytes"] <= 3000
            path = f"/v1/streams/{headers['x-ggufd-stream']}"
            error = error_of(client.ask("GET", path), 410)
            first = stream["first_event_id"]
            assert f"event {first} is the oldest that is left" in error["message"]
            assert client.go_on(headers["x-ggufd-stream"], first - 1) == b"".join(
                event + b"\n\n" for event in whole_events(data)[first:]
            )

    def test_a_client_that_reads_nothing_holds_up_nobody(self) -> None:
        """And loses its place: the rest is an error for it, while others read."""
        with a_server(step_s=0.0, max_bytes_each=60_000) as server:
            server.engine.answers = [b"x" * 4000]
            client = Client(server)
            told: list[bytes] = []
            with client._stream(
                "POST", "/v1/completions", {}, json={"prompt": "a", "stream": True, "resumable": True}
            ) as response:
                pieces = response.iter_raw()
                told.append(next(pieces))
                client.wait_ended()
                assert client.streams()[0]["last_event_id"] == 4001
                told += pieces
            last = json.loads(whole_events(b"".join(told))[-1].split(b"data: ")[1])
            assert last["error"]["code"] == "stream_gone"
            assert "is the oldest that is left" in last["error"]["message"]


class TestWhatElseIsTold:
    def test_the_place_in_the_queue_is_told_to_who_waits(self, server: Served) -> None:
        server.engine.turns = [Turn(2, 9.0), Turn(1, 2.0)]
        close_gate(server)
        client = Client(server)
        headers, data = client.start("/v1/completions", {"prompt": "a", "report_queue": True}, 60)
        assert b": queue position=1 eta_s=2.0\n" in data
        told = client.go_on(headers["x-ggufd-stream"], None, 30)
        assert told.startswith(b": queue position=1 eta_s=2.0\n")
        server.in_loop(server.engine.gate.set)
        whole = client.go_on(headers["x-ggufd-stream"], None)
        assert b"data: [DONE]" in whole
        assert b": queue" not in client.go_on(headers["x-ggufd-stream"], None)

    def test_pings_come_while_nothing_else_does(self, server: Served) -> None:
        close_gate(server)
        client = Client(server)
        headers, _ = client.start("/v1/messages", FAMILIES["/v1/messages"][0], 400)
        assert b'event: ping\ndata: {"type": "ping"}\n\n' in client.go_on(headers["x-ggufd-stream"], 0, 30)

    def test_it_is_counted_once_with_all_that_it_made(self, server: Served) -> None:
        client = Client(server)
        headers, _ = client.start("/v1/completions", {"prompt": "a"}, 400)
        metrics = parsed(client.ask("GET", "/metrics").text)
        assert ("ggufd_requests_total", frozenset({("key", ""), ("reason", "stop")})) not in metrics
        assert of(metrics, "ggufd_streams_running") == 1
        client.go_on(headers["x-ggufd-stream"], None)
        client.wait_ended()
        metrics = parsed(client.ask("GET", "/metrics").text)
        assert of(metrics, "ggufd_requests_total", key="", reason="stop") == 1
        assert of(metrics, "ggufd_key_tokens_total", key="", kind="generated") == len(TEXT.encode())
        assert (of(metrics, "ggufd_streams_running"), of(metrics, "ggufd_streams_ended")) == (0, 1)
        assert of(metrics, "ggufd_streams_bytes") == client.streams()[0]["bytes"]
        assert of(metrics, "ggufd_streams_resumed") == 1


def close_gate(server: Served) -> None:
    server.in_loop(server.engine.gate.clear)
    wait_until(lambda: not server.engine.gate.is_set())


def test_a_stored_response_is_there_when_its_client_was_not(server: Served) -> None:
    client = Client(server)
    headers, _ = client.start("/v1/responses", {"input": "hi"}, 400)
    client.wait_ended()
    stored = client.ask("GET", f"/v1/responses/{headers['x-ggufd-stream']}").json()
    assert stored["output"][0]["content"][0]["text"] == TEXT


@pytest.mark.parametrize("step_s", [0.0, 0.12])
def test_openais_client_reads_one_with_pings_between_its_events(server: Served, step_s: float) -> None:
    """Its decoder takes a blank line after an id for an event without data."""
    # Takes two seconds, in every process that collects this file.
    import openai

    server.engine.answers, server.engine.step_s = [b"Hello"], step_s
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=10) as client:
        chunks = list(
            client.chat.completions.create(
                model="m", messages=HELLO, stream=True, extra_body={"resumable": True, "report_queue": True}
            )
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello"
        whole = Client(server).go_on(chunks[0].id, None)
        assert len(whole_events(whole)) == len(chunks) + 1


def test_openais_client_goes_on_with_a_response(server: Served) -> None:
    """By sequence numbers, which are the events' ids."""
    import openai

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=10) as client:
        stream = client.responses.create(model="m", input="hi", stream=True, extra_body={"resumable": True})
        begun = [next(stream) for _ in range(8)]
        stream.close()
        response_id = begun[0].response.id  # type: ignore[union-attr]
        rest = list(client.responses.retrieve(response_id, stream=True, starting_after=begun[-1].sequence_number))
        assert [event.sequence_number for event in (*begun, *rest)] == list(range(len(begun) + len(rest)))
        assert rest[-1].type == "response.completed"
        assert rest[-1].response.output_text == TEXT
        for event in whole_events(Client(server).go_on(response_id, None)):
            assert json.loads(event.split(b"data: ")[1])["sequence_number"] == last_of([event])


async def test_a_response_that_was_not_resumable_is_not_streamed_again() -> None:
    async with running() as api:
        stored = await api.ok("/v1/responses", input="hi")
        response = await api.http.get(f"/v1/responses/{stored['id']}?stream=true")
        assert "only a response that was streamed with 'resumable'" in error_of(response, 400)["message"]
