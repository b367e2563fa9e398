"""Every documented route with whatever its schema allows and forbids, and sockets with whatever bytes there are.

No answer is a 5xx, every refusal is in the error shape, nothing hangs, and the engine is never started again.
`TESTS_FUZZ_EXAMPLES=500` tries more.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ggufd.api.app import create_app
from ggufd.api.http.connections import ConnectionLimits
from ggufd.api.services.settings import ApiConfig
from tests.support.fakes.api_server import serving
from tests.support.fakes.fake_engine import FakeEngine, FakeText
from tests.support.programs.live_server import live_server

N_EXAMPLES = int(os.environ.get("TESTS_FUZZ_EXAMPLES", "12"))
TIMEOUT_S = 60
N_SOCKETS = 20
"""Connections of one example: each may last as long as the server waits for the rest of a request."""

TRIED: Counter[str] = Counter()
"""How many inputs each server got."""

ANSWERS = (200, 204, 400, 401, 403, 404, 405, 406, 408, 411, 413, 414, 415, 422, 431)

pytestmark = [pytest.mark.long, pytest.mark.timeout(300 + 12 * N_EXAMPLES)]

_APART = ["/v1/live", "/v1/drain", "/v1/sleep"]
"""A stream without an end, and routes after which other requests are refused: tests/api/live has what they take."""

SCHEMA = schemathesis.openapi.from_dict(
    create_app(FakeEngine(), FakeText(), ApiConfig(model_id="fuzzed")).openapi()
).exclude(path=_APART)
FUZZ = settings(
    max_examples=N_EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
FUZZ_REAL = settings(FUZZ, phases=tuple(Phase) if N_EXAMPLES >= 100 else (Phase.generate,))
"""A few hundred examples for each route are written down in its schema: too many for a model in the short form."""


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server over a fake engine."""
    folder = tmp_path_factory.mktemp("batches")
    with serving(FakeEngine(["ab"]), limits=ConnectionLimits(read_timeout_s=0.3), batch_dir=folder) as served:
        yield served.url
        assert served.engine.open == set()
        print(f"fake engine: {TRIED[served.url]} inputs")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server over the demo model, whose engine must live to the end."""
    small = ("--ctx-size", "256", "--threads", "1", "--max-tokens", "4", "--flash-attn", "off")
    folder = str(tmp_path_factory.mktemp("batches"))
    with live_server(*small, "--read-timeout-s", "0.3", "--batch-dir", folder) as running:
        yield running.url
        assert running.wait_running(0, timeout_s=5)
        assert not [line for line in running.log if "starting the engine again" in line or "Traceback" in line]
        print(f"demo model: {TRIED[running.url]} inputs")


def check_alive(url: str) -> None:
    started_s = time.monotonic()
    assert httpx.get(f"{url}/health", timeout=TIMEOUT_S, trust_env=False).status_code == 200
    assert time.monotonic() - started_s < 5


@SCHEMA.parametrize()
@FUZZ
def test_every_route_answers_or_refuses_whatever_comes(fake: str, case: schemathesis.Case) -> None:
    check_answer(fake, case)


@SCHEMA.parametrize()
@FUZZ_REAL
def test_so_does_the_demo_model(real: str, case: schemathesis.Case) -> None:
    check_answer(real, case)


def check_answer(url: str, case: schemathesis.Case) -> None:
    TRIED[url] += 1
    response = case.call(base_url=url, timeout=TIMEOUT_S)
    assert response.status_code in ANSWERS or is_due(response), f"{response.status_code}: {response.text[:500]}"
    if response.status_code >= 400 and case.method != "HEAD":
        error = response.json()
        assert "detail" not in error
        assert error["error"]["message"] if isinstance(error.get("error"), dict) else error["error"]


def is_due(response: Any) -> bool:
    """A request may ask for a time in which nothing can be done."""
    return response.status_code == 503 and "the timeout of" in response.text


TOKENS = st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"PRI", b"get", b"", b"\0", b"\xff"])
TARGETS = st.sampled_from(
    [b"/", b"/health", b"/v1/completions", b"/v1//models/", b"*", b"//", b"/%", b"/%ff%00", b"http://x/y", b"/?\xff"]
) | st.binary(max_size=20)
VERSIONS = st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b"", b"http/1.1"])
NAMES = st.binary(max_size=8) | st.sampled_from(
    [b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Upgrade", b"Expect", b"Accept", b"X-Api-Key"]
)
VALUES = st.binary(max_size=12) | st.sampled_from(
    [
        b"0",
        b"5",
        b"-1",
        b"1e3",
        b"9" * 20,
        b"chunked",
        b"close",
        b"websocket",
        b"100-continue",
        b"Bearer ",
        b"localhost",
    ]
)
BODIES = st.binary(max_size=40) | st.sampled_from(
    [b"", b"{}", b'{"prompt":"a","max_tokens":1}', b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n"]
)


@st.composite
def raw_requests(draw: st.DrawFn) -> bytes:
    """Something like a request."""
    line = b" ".join([draw(TOKENS), draw(TARGETS), draw(VERSIONS)])
    headers = [name + b": " + value for name, value in draw(st.lists(st.tuples(NAMES, VALUES), max_size=4))]
    end = draw(st.sampled_from([b"\r\n", b"\r\n", b"\n", b"\r"]))
    return end.join([line, *headers, b"", draw(BODIES)])


@settings(FUZZ, max_examples=2 * N_EXAMPLES)
@given(sent=st.lists(raw_requests() | st.binary(max_size=60), min_size=1, max_size=N_SOCKETS))
def test_whatever_bytes_come_the_answer_is_no_server_error_and_the_connection_ends(
    real: str, sent: list[bytes]
) -> None:
    TRIED[real] += len(sent)
    address = urlsplit(real).hostname or "", urlsplit(real).port or 0
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(address, timeout=TIMEOUT_S)) for _ in sent]
        for connection, data in zip(connections, sent, strict=True):
            with contextlib.suppress(OSError):
                connection.sendall(data)
        for connection in connections:
            for status in statuses(connection):
                assert status in (100, *ANSWERS)
    check_alive(real)


def statuses(connection: socket.socket) -> list[int]:
    """Of all answers on this connection, until it is closed, or kept open in silence for the next request."""
    connection.settimeout(1)
    data = b""
    with contextlib.suppress(OSError):
        while piece := connection.recv(65536):
            data += piece
            if b"keep-alive" not in data.lower() and data.endswith((b"}", b"\r\n\r\n")):
                connection.settimeout(0.1)
    lines: list[Any] = [line.split() for line in data.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    return [int(line[1]) for line in lines]
