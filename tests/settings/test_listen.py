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
