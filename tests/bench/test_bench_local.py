"""What the bench sees of servers of this machine: until they are ready, their memory, and their CPU time."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from ggufd.bench.app import app
from ggufd.bench.measure.client import BenchError
from ggufd.bench.measure.local import Local, listening, started

pytestmark = pytest.mark.timed

EMPTY_APP = f"{sys.executable} -m ggufd.bench.empty_app {{port}} 0.001"

LATE = """
import http.server, sys, time
print('loading', flush=True)
time.sleep({delay})
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == '/health' else 404)
        self.end_headers()
http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()
"""


def late(delay_s: float) -> list[str]:
    """A server that is ready after so many seconds."""
    return [sys.executable, "-c", LATE.replace("{delay}", str(delay_s)), "{port}"]


def test_a_server_is_timed_until_it_is_ready_and_ended_afterwards() -> None:
    with started(late(0.4)) as server:
        assert 0.4 <= server.ready_s < 20
        assert listening(server.url).pid == server.pid
        memory = server.memory()
        assert 2**20 < memory.total <= memory.largest  # one process, which shares some pages with others
    assert not psutil.pid_exists(server.pid)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("true", "expected a command line with {port}"),
        ("/nowhere/server {port}", "cannot be run"),
        ("A=1 B=2", "expected a command line"),
        (f"{sys.executable} -c \"import sys; print('no such model'); sys.exit(4)\" {{port}}", "with 4: no such model"),
    ],
)
def test_a_server_that_does_not_come_up_says_why(command: str, said: str) -> None:
    with pytest.raises(BenchError, match=said.replace("{", r"\{")), started(command):
        pass


def test_a_server_that_takes_too_long_is_ended() -> None:
    with pytest.raises(BenchError, match="not ready in time; the server's last line: loading"):  # noqa: SIM117
        with started(late(60), timeout_s=2):
            pass


def test_variables_before_a_command_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAID", raising=False)
    program = "import os, sys; sys.exit('it said ' + os.environ['SAID'])"
    with pytest.raises(BenchError, match="it said so"), started(f'SAID=so {sys.executable} -c "{program}" {{port}}'):
        pass
    assert "SAID" not in os.environ


def test_who_listens_is_found_by_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
        assert listening(f"127.0.0.1:{port}") == Local(f"http://127.0.0.1:{port}", os.getpid())
    with pytest.raises(BenchError, match=f"listens on port {port}"):
        listening(f"127.0.0.1:{port}")


def test_cpu_time_is_that_of_the_process() -> None:
    one = Local("here", os.getpid())
    before_s, own_s = one.cpu_s(), time.process_time()
    while time.process_time() < own_s + 0.2:
        pass
    assert one.cpu_s() - before_s == pytest.approx(0.2, abs=0.05)


def test_a_process_that_is_gone_is_said() -> None:
    with started(late(0)) as server:
        pass
    with pytest.raises(BenchError, match="memory"):
        server.memory()
    with pytest.raises(BenchError, match="CPU time"):
        server.cpu_s()


@pytest.mark.e2e
def test_starts_are_measured_in_turns_and_memory_before_and_after_a_load(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    flags = ["--rounds", "2", "--requests", "2", "--json", str(out)]
    result = CliRunner().invoke(app, ["start", EMPTY_APP, "--against", f"X=1 {EMPTY_APP}", *flags])
    assert result.exit_code == 0, result.output
    found = {(one["case"], one["quantity"]): one for one in json.loads(out.read_text())["results"]}
    assert set(found) == {
        ("from command to ready", "time"),
        *((case, f"memory of {which}") for case in ("ready", "after 2 requests at once")
          for which in ("all its processes", "the largest")),
    }  # fmt: skip
    times = found["from command to ready", "time"]["samples"]
    assert [(one["repetition"], one["server"]) for one in times] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(one["value"] > 0.1 for one in times)
    memory = found["after 2 requests at once", "memory of the largest"]["medians"]
    assert memory[0] == pytest.approx(memory[1], rel=0.2)


@pytest.mark.e2e
def test_an_empty_app_costs_what_an_empty_app_costs(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with started(EMPTY_APP) as server:
        flags = ["--streams", "4", "--tokens", "200", "--rounds", "2", "--json", str(out)]
        result = CliRunner().invoke(app, ["chunks", server.url, *flags])
    assert result.exit_code == 0, result.output
    cost = next(one for one in json.loads(out.read_text())["results"] if one["quantity"] == "CPU a chunk")
    assert cost["unit"] == "us"
    assert all(5 < one["value"] < 5000 for one in cost["samples"])
    assert 0.4 < cost["ratio"]["of_medians"] < 2.5


def test_only_a_server_of_this_machine_can_be_asked_for_its_cpu() -> None:
    result = CliRunner().invoke(app, ["chunks", "127.0.0.1:1"])
    assert result.exit_code == 1
    assert "listens on port 1" in result.output
