"""A server program as a child: the address that it prints, its last words, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from ggufd.errors import StartupError
from ggufd.processes.server_process import ServerProcess

WAIT_S = 60.0
FOREVER = "import time\nwhile True: time.sleep(60)"


@contextmanager
def running(program: str) -> Iterator[ServerProcess]:
    process = ServerProcess([sys.executable, "-c", program])
    try:
        yield process
    finally:
        process.kill()


@pytest.mark.parametrize("url", ["http://127.0.0.1:4711", "https://[::1]:80", "http://node-3.local:9"])
def test_the_address_of_a_start_summary_is_found(url: str) -> None:
    lines = ["see https://example.com/v2 and nothing else", f"  API  {url}/v1", "  API  http://other:1/v1"]
    with running(f"print({chr(10).join(lines)!r})\n{FOREVER}") as process:
        assert process.wait_address(WAIT_S) == url


def test_a_program_that_ends_is_told_with_its_last_line() -> None:
    with running("print('one'); print('no such model'); print(); raise SystemExit(3)") as process:
        with pytest.raises(StartupError, match="ended with 3: no such model"):
            process.wait_address(WAIT_S)
        assert process.exit_code == 3


def test_a_program_that_prints_no_address_is_not_waited_for_without_end() -> None:
    with running(f"print('loading')\n{FOREVER}") as process:
        while process.last_line != "loading":
            time.sleep(0.01)
        with pytest.raises(StartupError, match="not ready in time; its last line: loading"):
            process.wait_address(0.01)


def test_what_cannot_be_run_is_told() -> None:
    with pytest.raises(StartupError, match="/no/such/program cannot be run: No such file"):
        ServerProcess(["/no/such/program"])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_nothing_of_the_parent_runs_in_the_child() -> None:
    """What libraries ask to be called in a fork may end it: gRPC's abort in an actor of Ray."""
    parent = (
        "import os, sys\nfrom ggufd.processes.server_process import ServerProcess\n"
        "os.register_at_fork(after_in_child=os.abort)\n"
        "process = ServerProcess([sys.executable, '-c', 'print(\"http://h:1/v1\")'])\n"
        f"print(process.wait_address({WAIT_S}))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == "http://h:1\n", done


def test_a_program_that_does_not_heed_is_killed() -> None:
    deaf = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('http://h:1/v1')\n{FOREVER}"
    with running(deaf) as process:
        process.wait_address(WAIT_S)
        process.stop(0.1)
        assert process.exit_code == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_a_program_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    parent = (
        "import sys, time\nfrom ggufd.processes.server_process import ServerProcess\n"
        f"process = ServerProcess([sys.executable, '-c', {FOREVER!r}])\nprint(process.pid, flush=True)\ntime.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, env=environment) as first:
        assert first.stdout is not None
        child = psutil.Process(int(first.stdout.readline()))
        assert child.is_running()
        first.kill()
    gone, _ = psutil.wait_procs([child], WAIT_S)
    assert gone
