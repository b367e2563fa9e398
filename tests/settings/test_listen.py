"""The sockets: bound or one sentence, and as many connections as there may be files."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ggufd.errors import StartupError
from ggufd.settings import listen

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    bound = listen.bind("127.0.0.1", 0)
    yield bound
    for one in bound:
        one.close()


def test_a_port_in_use_is_said(sockets: list[socket.socket]) -> None:
    port = sockets[0].getsockname()[1]
    with pytest.raises(StartupError, match=f"port {port} of 127.0.0.1 is in use"):
        listen.bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["127.0.0.1,::1", "::1, 127.0.0.1", "127.0.0.1,localhost"])
def test_several_addresses_share_a_port(host: str) -> None:
    bound = listen.bind(host, 0)
    try:
        assert sorted(one.getsockname()[0] for one in bound) == ["127.0.0.1", "::1"]
        (port,) = {one.getsockname()[1] for one in bound}
        assert listen.url_of(host, bound) in (f"http://127.0.0.1:{port}", f"http://[::1]:{port}")
    finally:
        for one in bound:
            one.close()


def test_one_address_that_cannot_be_had_leaves_none_bound() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(StartupError, match=r"192\.0\.2\.1: not an address of this machine"):
        listen.bind("127.0.0.1,192.0.2.1", port)
    socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1,::1", True), ("localhost", True), ("127.0.0.1,0.0.0.0", False), ("::1,example.org", False)],
)
def test_all_of_several_addresses_must_be_loopback_ones(host: str, expected: bool) -> None:
    assert listen.is_loopback(host) is expected


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux only")
def test_accepted_connections_notice_a_peer_that_vanished(sockets: list[socket.socket]) -> None:
    with socket.create_connection(sockets[0].getsockname()), sockets[0].accept()[0] as accepted:
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
@pytest.mark.parametrize(("soft", "hard", "expected"), [(256, 1024, 924), (150, 150, 75), (64, 64, 24), (32, 32, 4)])
def test_the_limit_of_open_files_is_raised_and_kept_to(soft: int, hard: int, expected: int) -> None:
    code = (
        "import resource; from ggufd.settings import listen;"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}));"
        "print(listen.connections_limit(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(expected), str(hard)]
    assert (f"at most {expected} connections" in done.stderr) is (expected < 200)
