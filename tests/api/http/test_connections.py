"""What strangers do to sockets: dawdle, send without end, read nothing, come in crowds. Others are served."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from ggufd.api.http.connections import MAX_HEAD_BYTES, Connection, ConnectionLimits
from tests.support.fakes.api_server import Served, serving, wait_until
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.limits import ANSWER_S

LIMITS = ConnectionLimits(read_timeout_s=0.4, write_timeout_s=0.5, n_connections=40)
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: test\r\n"
ALIVE = b"GET /health/live HTTP/1.1\r\nHost: test\r\n\r\n"


@pytest.fixture
def server() -> Iterator[Served]:
    with serving(FakeEngine(["word " * 5], n_ctx=100_000), limits=LIMITS) as served:
        yield served
        assert served.engine.open == set()
    assert served.guard.n_open == 0
    assert served.guard.awaited == {}


def connect(server: Served, data: bytes = b"", receive_bytes: int = 0) -> socket.socket:
    connection = socket.socket()
    if receive_bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(data)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """Everything until the other side closes, or resets what we did not read."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            data += piece
    return data


def refusal(data: bytes) -> tuple[int, str]:
    """Status and code of an answer in the error shape."""
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    error = json.loads(body)["error"]
    assert error["message"]
    return int(head.split()[1]), error["code"]


def is_served(server: Served) -> bool:
    response = httpx.post(
        f"{server.url}/v1/completions", json={"prompt": "a", "max_tokens": 3}, trust_env=False, timeout=ANSWER_S
    )
    return response.status_code == 200


@pytest.mark.parametrize(
    "sent",
    [b"POST /v1/comple", HEAD, HEAD + b"Content-Length: 90\r\n\r\n", HEAD + b"Content-Length: 90\r\n\r\n{"],
    ids=["line", "head", "body", "part of a body"],
)
@pytest.mark.timed
def test_a_request_that_does_not_arrive_is_ended(server: Served, sent: bytes) -> None:
    with connect(server, sent) as connection:
        started = time.monotonic()
        assert is_served(server)
        assert refusal(read_all(connection)) == (408, "request_timeout")
        assert time.monotonic() - started < 2


@pytest.mark.timed
def test_a_request_that_trickles_is_ended_all_the_same(server: Served) -> None:
    with connect(server, HEAD) as connection:
        started = time.monotonic()
        connection.settimeout(0.05)
        data = b""
        with contextlib.suppress(OSError):
            while not data and time.monotonic() - started < 5:
                connection.sendall(b"X: y\r\n")
                with contextlib.suppress(TimeoutError):
                    data = connection.recv(4096)
        assert time.monotonic() - started < 2
        assert refusal(data) == (408, "request_timeout")


def test_a_connection_without_a_request_is_closed_without_a_word(server: Served) -> None:
    with connect(server) as connection:
        assert read_all(connection) == b""


def test_a_second_request_that_does_not_arrive_is_ended_too(server: Served) -> None:
    with connect(server, ALIVE) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /hea")
        assert refusal(read_all(connection)) == (408, "request_timeout")


def test_a_slow_answer_is_not_a_slow_request(server: Served) -> None:
    server.engine.step_s = 0.2
    body = {"prompt": "a", "max_tokens": 8}
    assert httpx.post(f"{server.url}/v1/completions", json=body, trust_env=False, timeout=10).status_code == 200


def test_a_connection_that_is_kept_serves_many_requests(server: Served) -> None:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=ANSWER_S) as http:
        for _ in range(6):
            assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200
            time.sleep(0.1)
        assert server.guard.n_open == 1


def test_a_head_without_an_end_is_refused(server: Served) -> None:
    with connect(server, HEAD) as connection:
        with contextlib.suppress(OSError):
            for _ in range(100):
                connection.sendall(b"X: " + b"y" * 10_000 + b"\r\n")
        assert refusal(read_all(connection)) == (431, "headers_too_large")
    assert is_served(server)


def test_a_head_of_a_normal_size_is_not(server: Served) -> None:
    cookie = "x" * (MAX_HEAD_BYTES // 2)
    with httpx.Client(base_url=server.url, headers={"Cookie": cookie}, trust_env=False, timeout=ANSWER_S) as http:
        assert http.get("/health/live").status_code == 200


def test_a_large_body_is_no_large_head(server: Served) -> None:
    body = json.dumps({"prompt": "a" * 3 * MAX_HEAD_BYTES, "max_tokens": 1}).encode()
    with connect(server, HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)) as connection:
        for start in range(0, len(body), 20_000):
            connection.sendall(body[start : start + 20_000])
        # It does not fit into the context; the app itself said so.
        assert refusal(read_all(connection)) == (400, "context_length_exceeded")


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00\x01\x00", b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"])
def test_what_is_no_http_is_told_so_in_the_error_shape(server: Served, sent: bytes) -> None:
    with connect(server, sent) as connection:
        assert refusal(read_all(connection)) == (400, "invalid_http")


def test_a_client_that_reads_nothing_is_dropped_and_its_work_ends() -> None:
    engine = FakeEngine(["word " * 2000], n_ctx=2_000_000)
    with serving(engine, limits=LIMITS) as server:
        body = json.dumps({"prompt": "a", "stream": True, "ignore_eos": True}).encode()
        request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
        with connect(server, request, receive_bytes=4096) as connection:
            wait_until(lambda: len(engine.open) == 1)
            started = time.monotonic()
            while engine.open and time.monotonic() - started < 60:
                assert is_served(server)
            assert engine.open == set()
            assert server.guard.n_open <= 1
            assert b"[DONE]" not in read_all(connection)
        assert engine.aborted


def test_a_client_that_reads_slowly_gets_it_all() -> None:
    engine = FakeEngine(["word " * 3000], n_ctx=2_000_000)
    with serving(engine, limits=LIMITS) as server:
        body = json.dumps({"prompt": "a", "stream": True, "max_tokens": 15_000}).encode()
        request = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        with connect(server, request, receive_bytes=65536) as connection:
            data = b""
            while piece := connection.recv(200_000):
                data += piece
                time.sleep(0.02)
        assert b"[DONE]" in data


def test_a_crowd_of_idle_connections_gives_way_to_those_who_ask(server: Served) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(5 * LIMITS.n_connections):
            stack.enter_context(connect(server))
        for _ in range(5):
            assert is_served(server)
        assert server.guard.n_open <= LIMITS.n_connections + 1


def test_those_who_may_ask_again_give_way_too(server: Served) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(3 * LIMITS.n_connections):
            connection = stack.enter_context(connect(server, ALIVE))
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        assert is_served(server)
        assert len(server.guard.awaited) <= LIMITS.n_connections


def test_when_all_are_being_answered_one_more_is_refused(server: Served) -> None:
    server.in_loop(server.engine.gate.clear)
    wait_until(lambda: not server.engine.gate.is_set())
    body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with contextlib.ExitStack() as stack:
        for _ in range(LIMITS.n_connections):
            stack.enter_context(connect(server, request))
        wait_until(lambda: len(server.engine.open) == LIMITS.n_connections)
        late = stack.enter_context(connect(server, request))
        assert refusal(read_all(late)) == (503, "too_many_connections")
        server.in_loop(server.engine.gate.set)
        wait_until(lambda: not server.engine.open)
    wait_until(lambda: server.guard.n_open == 0)
    assert is_served(server)


def test_pipelined_requests_are_answered_in_order(server: Served) -> None:
    n = 200
    with connect(server, n * ALIVE + ALIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) as connection:
        data = read_all(connection)
    assert data.count(b"HTTP/1.1 200") == n + 1


def test_requests_that_come_faster_than_answers_do_not_pile_up(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 3000
    queued = []
    go_on = Connection.on_response_complete

    def note(connection: Connection) -> None:
        go_on(connection)
        queued.append(len(connection.pipeline))

    monkeypatch.setattr(Connection, "on_response_complete", note)
    with connect(server) as connection:
        sender = threading.Thread(target=connection.sendall, args=(n * ALIVE,))
        sender.start()
        n_answers = 0
        while n_answers < n:
            n_answers += connection.recv(1 << 20).count(b"HTTP/1.1 200")
        sender.join(10)
    # The last answer is here before the server has taken note of it.
    wait_until(lambda: len(queued) == n)
    assert 0 < max(queued) < 300
    assert is_served(server)


def test_a_queued_request_that_is_not_whole_is_awaited(server: Served) -> None:
    body = b'{"prompt": "a", "max_tokens": 1}'
    request = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    server.in_loop(server.engine.gate.clear)
    wait_until(lambda: not server.engine.gate.is_set())
    slow = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with connect(server, slow + request[:-10]) as connection:
        wait_until(lambda: len(server.engine.open) == 1)
        connection.sendall(request[-10:])
        server.in_loop(server.engine.gate.set)
        assert read_all(connection).count(b"HTTP/1.1 200") == 2
