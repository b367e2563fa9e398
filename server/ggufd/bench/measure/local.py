"""Server on this machine: start from a command line, readiness, memory and CPU time.

Knows processes and `/health`; nothing of what a server computes.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from ggufd.bench.measure.client import Address, BenchError

READY_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30.0
_POLL_S = 0.01
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes in RAM. `total` counts what several processes share once, where the system tells (Linux)."""

    total: int
    largest: int


@dataclass(frozen=True, slots=True)
class Local:
    """A running server: where it listens, its first process, and how long it took from the command until ready."""

    url: str
    pid: int
    ready_s: float = 0.0

    def memory(self) -> Memory:
        """Memory of the process and all its children."""
        try:
            first = psutil.Process(self.pid)
            found = [_bytes_of(process) for process in (first, *first.children(recursive=True))]
        except psutil.Error as error:
            raise BenchError(f"the memory of {self.url} cannot be read: {error}") from None
        return Memory(sum(share for share, _ in found), max(resident for _, resident in found))

    def cpu_s(self) -> float:
        """CPU time of the first process alone so far, in seconds; to the nanosecond on Linux."""
        tasks = Path(f"/proc/{self.pid}/task")
        with contextlib.suppress(OSError, ValueError, IndexError):
            found = [int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()]
            if any(found):
                return sum(found) / 1e9
        try:
            times = psutil.Process(self.pid).cpu_times()
        except psutil.Error as error:
            raise BenchError(f"the CPU time of {self.url} cannot be read: {error}") from None
        return float(times.user + times.system)


def _bytes_of(process: psutil.Process) -> tuple[int, int]:
    """Its share of the memory in RAM, and all that it sees of it."""
    with contextlib.suppress(psutil.Error):
        full = process.memory_full_info()
        return int(getattr(full, "pss", full.rss)), int(full.rss)
    return 0, 0


def listening(url: str) -> Local:
    """Server that listens at a loopback address. Raises BenchError when none is seen here."""
    address = Address.parse(url)
    for one in psutil.net_connections("tcp"):
        if one.status == psutil.CONN_LISTEN and one.pid and one.laddr and one.laddr.port == address.port:
            return Local(address.url, one.pid)
    raise BenchError(f"no process of yours on this machine listens on port {address.port}, so its CPU cannot be seen")


@contextlib.contextmanager
def started(command: str | Sequence[str], timeout_s: float = READY_TIMEOUT_S) -> Iterator[Local]:
    """Context with the server of a command line, ready; ended at its end.

    `{port}` stands for a free port. A line may begin with variables, as in a shell: `NAME=value llama-server ...`.
    Raises BenchError when it ends or is not ready in time, with the last line that it said.
    """
    parts = shlex.split(command) if isinstance(command, str) else list(command)
    port = _free_port()
    n_variables = next((i for i, part in enumerate(parts) if not _ASSIGNMENT.match(part)), len(parts))
    variables = dict(part.split("=", 1) for part in parts[:n_variables])
    arguments = [part.replace("{port}", str(port)) for part in parts[n_variables:]]
    if not any("{port}" in part for part in parts):
        raise BenchError(f"{' '.join(parts)}: expected a command line with {{port}} where the port belongs")
    with tempfile.TemporaryFile() as log:
        start_s = time.perf_counter()
        process = _spawn(arguments, variables, log)
        try:
            _await_ready(process, port, start_s + timeout_s, log)
            yield Local(f"http://127.0.0.1:{port}", process.pid, time.perf_counter() - start_s)
        finally:
            _stop(process)


def _spawn(arguments: list[str], variables: dict[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            arguments,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    except (OSError, IndexError) as error:
        raise BenchError(f"{' '.join(arguments)} cannot be run: {error}") from None


def _await_ready(process: subprocess.Popen[bytes], port: int, deadline_s: float, log: IO[bytes]) -> None:
    while not _is_healthy(port):
        if process.poll() is not None:
            raise BenchError(f"the server ended with {process.returncode}: {_last_line(log)}")
        if time.perf_counter() > deadline_s:
            raise BenchError(f"port {port} was not ready in time; the server's last line: {_last_line(log)}")
        time.sleep(_POLL_S)


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "it said nothing"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
