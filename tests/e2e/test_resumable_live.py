"""Streams that outlive their client, with the real server: killed sockets, a killed engine, a stop signal."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from ggufd.keys.ring import digest_of
from tests.support.limits import ANSWER_S
from tests.support.programs.live_server import LiveServer, live_server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

STORY = [{"role": "user", "content": "Tell me a story about a fox."}]
CHAT = "/v1/chat/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": STORY, "max_tokens": 40},
    "/v1/completions": {"prompt": "Once upon a time", "max_tokens": 40},
    "/v1/responses": {"input": STORY, "max_output_tokens": 40},
    "/v1/messages": {"messages": STORY, "max_tokens": 40},
    "/completion": {"prompt": "Once upon a time", "n_predict": 40},
    "/api/extra/generate/stream": {"prompt": "Once upon a time", "max_length": 40},
}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    # What speculation drafts depends on what else runs, and with it where the text is cut into events.
    flags = ("--ctx-size", "2048", "--parallel", "2", "--temp", "0", "--spec-draft-n-max", "0")
    with live_server(*flags, "--text-interval-ms", "0") as running:
        yield running


def killed(server: LiveServer, path: str, body: dict[str, Any], n_events: int, *headers: str) -> tuple[str, bytes]:
    """The id of a stream and what came of it before its connection was reset by the client."""
    raw = json.dumps({"stream": True, "resumable": True, **body}).encode()
    address = urlsplit(server.url)
    with socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=60) as connection:
        lines = (f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(raw)}", *headers)
        connection.sendall("\r\n".join((*lines, "", "")).encode() + raw)
        data = b""
        while data.count(b"\nid: ") < n_events:
            piece = connection.recv(65536)
            assert piece, data
            data += piece
        # No goodbye: a reset, as of a phone whose network is gone.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    head, _, chunked = data.partition(b"\r\n\r\n")
    found = re.search(rb"x-ggufd-stream: (\S+)", head)
    assert found is not None, data
    # Chunks of HTTP end between two events, so that what frames them stands on lines of its own.
    return found[1].decode(), re.sub(rb"(^|\r\n)[0-9a-f]+\r\n", b"", chunked).removesuffix(b"\r\n")


def events_of(data: bytes) -> list[bytes]:
    blocks = re.sub(rb"(?m)^:.*\n", b"", data).split(b"\n\n")[:-1]
    return [block.lstrip(b"\n") for block in blocks if block.strip() and b'"ping"' not in block]


def go_on(server: LiveServer, stream_id: str, last: int | None, **headers: str) -> list[bytes]:
    sent = headers if last is None else {**headers, "Last-Event-ID": str(last)}
    response = httpx.get(f"{server.url}/v1/streams/{stream_id}", headers=sent, trust_env=False, timeout=120)
    assert response.status_code in (200, 204), response.text
    return events_of(response.content)


def text_of(events: list[bytes]) -> str:
    """What the events say, of whichever API."""
    text = ""
    for event in events:
        data = event.split(b"data: ", 1)[1]
        if data == b"[DONE]":
            continue
        told = json.loads(data)
        choice = (told.get("choices") or [{}])[0]
        delta = told.get("delta")
        text += choice.get("text") or choice.get("delta", {}).get("content") or ""
        text += (delta if isinstance(delta, str) else (delta or {}).get("text")) or ""
        text += told.get("token") or (told.get("content") if isinstance(told.get("content"), str) else "") or ""
    return text


def streams_of(server: LiveServer, **headers: str) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = httpx.get(
        f"{server.url}/v1/streams", headers=headers, trust_env=False, timeout=ANSWER_S
    ).json()["data"]
    return data


def wait_ended(server: LiveServer, timeout_s: float = 120, **headers: str) -> None:
    deadline = time.monotonic() + timeout_s
    while any(stream["status"] == "running" for stream in streams_of(server, **headers)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("path", BODIES)
def test_after_a_killed_connection_the_rest_comes_as_if_nothing_had_been(server: LiveServer, path: str) -> None:
    stream_id, data = killed(server, path, BODIES[path], 12)
    events = events_of(data)
    assert server.n_running() == 1
    last = int(events[-1].split(b"\n")[0].removeprefix(b"id: "))
    rest = go_on(server, stream_id, last)
    assert events + rest == go_on(server, stream_id, None)
    whole = httpx.post(
        f"{server.url}{path}", json={**BODIES[path], "stream": True}, trust_env=False, timeout=120
    ).content
    assert text_of(events + rest) == text_of(events_of(whole)) != ""
    assert len(rest) > 5


def test_the_openai_client_starts_and_another_one_goes_on(server: LiveServer) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        stream = client.chat.completions.create(
            model="any", messages=STORY, max_tokens=40, stream=True, extra_body={"resumable": True}
        )
        chunks = [next(stream) for _ in range(5)]
        stream.close()
    rest = go_on(server, chunks[0].id, 4)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks) + text_of(rest)
    assert text == text_of(go_on(server, chunks[0].id, None))


def test_cut_off_at_many_places_it_is_the_same_answer(server: LiveServer) -> None:
    stream_id, data = killed(server, CHAT, BODIES[CHAT], 3)
    got = events_of(data)
    for n_bytes in itertools.cycle((1, 299, 301, 1000, 3001)):
        if b"[DONE]" in got[-1]:
            break
        got += _some(server, stream_id, len(got) - 1, n_bytes)
    assert got == go_on(server, stream_id, None)


def _some(server: LiveServer, stream_id: str, last: int, n_bytes: int) -> list[bytes]:
    """The whole events in the next few bytes, and at least one."""
    data = b""
    url, headers = f"{server.url}/v1/streams/{stream_id}", {"Last-Event-ID": str(last)}
    with (
        httpx.Client(trust_env=False, timeout=60) as client,
        client.stream("GET", url, headers=headers) as response,
    ):
        for piece in response.iter_raw():
            data += piece
            if len(data) >= n_bytes and events_of(data):
                break
    return events_of(data)


def test_it_is_a_running_request_of_the_queue(server: LiveServer) -> None:
    stream_id, _ = killed(server, CHAT, {**BODIES[CHAT], "max_tokens": 500}, 2)
    queue = httpx.get(f"{server.url}/v1/queue", trust_env=False, timeout=ANSWER_S).json()
    assert (queue["running"], queue["data"][0]["status"]) == (1, "running")
    ended = httpx.delete(f"{server.url}/v1/streams/{stream_id}", trust_env=False, timeout=ANSWER_S).json()
    assert ended["deleted"] is True
    assert server.wait_running(0, 10)
    assert httpx.get(f"{server.url}/v1/streams/{stream_id}", trust_env=False, timeout=ANSWER_S).status_code == 404
    assert any("abort" in line and CHAT in line for line in server.log), "the log tells of it when it has ended"


def test_an_engine_that_dies_ends_it_with_an_error_that_is_kept(server: LiveServer) -> None:
    stream_id, _ = killed(server, CHAT, {**BODIES[CHAT], "max_tokens": 500}, 4)
    server.engine.kill()
    wait_ended(server)
    events = go_on(server, stream_id, 1)
    error = json.loads(events[-1].split(b"data: ")[1])["error"]
    assert error["code"] == "engine_down"
    assert error["message"]
    deadline = time.monotonic() + 60
    while httpx.get(f"{server.url}/health", trust_env=False, timeout=ANSWER_S).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert go_on(server, stream_id, 1) == events, "the engine's restart takes nothing away"


def test_a_revoked_key_loses_what_runs_and_what_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"

    def keys(*names: str) -> None:
        tables = [f'[{name}]\nsha256 = "{digest_of(name).hex()}"\n' for name in names]
        file.write_text("\n".join(tables), "utf-8")
        file.chmod(0o600)

    keys("alice", "bob")
    with live_server("--parallel", "2", "--ctx-size", "2048", "--api-key-file", str(file)) as guarded:
        alice = {"x-api-key": "alice"}
        stream_id, _ = killed(guarded, CHAT, {**BODIES[CHAT], "max_tokens": 900}, 3, "x-api-key: alice")
        url = f"{guarded.url}/v1/streams/{stream_id}"
        assert httpx.get(url, headers={"x-api-key": "bob"}, trust_env=False, timeout=ANSWER_S).status_code == 404
        assert len(streams_of(guarded, **alice)) == 1
        keys("bob")
        deadline = time.monotonic() + 10
        while httpx.get(url, headers=alice, trust_env=False, timeout=60).status_code != 401:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        keys("alice", "bob")
        while (response := httpx.get(url, headers=alice, trust_env=False, timeout=ANSWER_S)).status_code == 401:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert response.status_code == 404


def test_a_stop_signal_waits_for_it_and_its_client_may_come_back_meanwhile() -> None:
    with live_server("--parallel", "2", "--ctx-size", "2048", "--drain-s", "60") as stopping:
        stream_id, data = killed(stopping, CHAT, {**BODIES[CHAT], "max_tokens": 60}, 3)
        stopping._process.send_signal(signal.SIGTERM)
        while httpx.get(f"{stopping.url}/health", trust_env=False, timeout=ANSWER_S).status_code != 503:
            time.sleep(0.02)
        refused = httpx.post(f"{stopping.url}{CHAT}", json=BODIES[CHAT], trust_env=False, timeout=30)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        events = events_of(data)
        rest = go_on(stopping, stream_id, len(events) - 1)
        assert rest[-1].endswith(b"data: [DONE]")
        assert b'"finish_reason":"length"' in rest[-2]
        deadline = time.monotonic() + 20
        while stopping.exit_code is None:
            assert time.monotonic() < deadline, "nobody is left to wait for"
            time.sleep(0.1)
    assert stopping.exit_code == 0


def test_at_the_deadline_it_ends_with_an_error() -> None:
    with live_server("--parallel", "2", "--ctx-size", "2048", "--drain-s", "1") as stopping:
        stream_id, _ = killed(stopping, CHAT, {**BODIES[CHAT], "max_tokens": 1500}, 3)
        with (
            httpx.Client(trust_env=False, timeout=60) as client,
            client.stream("GET", f"{stopping.url}/v1/streams/{stream_id}") as response,
        ):
            pieces = response.iter_raw()
            data = next(pieces)
            stopping._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(httpx.ReadError):
                for piece in pieces:
                    data += piece
    assert json.loads(events_of(data)[-1].split(b"data: ")[1])["error"]["code"] == "shutting_down"
