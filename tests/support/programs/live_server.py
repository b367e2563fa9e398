"""The real server with the real demo model, as its own process on a free loopback port, for tests over HTTP."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

from tests.support.limits import ANSWER_S

ROOT = Path(__file__).parents[3]
START_S = 90
_MODEL = {"-m", "--model"}
_THREADS = {"-t", "--threads"}
STOP_S = 30


class LiveServer:
    """A ready server, which may have `n_files` files open. `log` grows while it runs; `url` has no path.

    `verify` is whom to trust where it speaks TLS.
    """

    def __init__(self, *arguments: str, n_files: int | None = None, verify: ssl.SSLContext | bool = True) -> None:
        self.url = ""
        self._verify = verify
        self.log: list[str] = []
        # Left alone, it is measured, and what the demo model says would depend on the machine.
        fixed = [] if _MODEL & set(arguments) else ["--flash-attn", "on"]
        # Compute threads that wait for each other crawl where another worker of the tests is busy.
        fixed += [] if _THREADS & set(arguments) else ["--threads", "1"]
        command = [sys.executable, "-m", "ggufd", "--port", "0", *fixed, *arguments]
        if n_files is not None:
            command = ["sh", "-c", f'ulimit -n {n_files} && exec "$@"', "sh", *command]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self.log.extend(self._process.stdout)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if not self.url and (found := re.search(r"https?://[\w.:\[\]]+(?=/v1)", "".join(self.log))):
                self.url = found[0]
            with contextlib.suppress(httpx.HTTPError):
                if self.url and self._is_healthy():
                    return
            time.sleep(0.1)
        raise RuntimeError(f"the server is not ready: {''.join(self.log)[-2000:]}")

    def _is_healthy(self) -> bool:
        health = f"{self.url}/health"
        return httpx.get(health, trust_env=False, verify=self._verify, timeout=ANSWER_S).status_code == 200

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(5)
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        """The API process; the engine and the text process are its children."""
        return self._process.pid

    @property
    def engine(self) -> psutil.Process:
        """The process that holds the model: by far the largest child."""
        return max(self.children(), key=lambda child: child.memory_info().rss)

    def children(self) -> list[psutil.Process]:
        """All processes under the API's."""
        return psutil.Process(self.pid).children(recursive=True)

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.poll()

    def n_running(self) -> int:
        """How many slots compute right now, as `GET /slots` says."""
        slots = httpx.get(f"{self.url}/slots", trust_env=False, timeout=30).json()
        return sum(bool(slot["is_processing"]) for slot in slots)

    def wait_running(self, wanted: int, timeout_s: float) -> bool:
        """Whether this many slots compute, waited for."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.n_running() == wanted:
                return True
            time.sleep(0.02)
        return False


def free_port() -> int:
    """A port of the loopback that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


@contextlib.contextmanager
def live_server(
    *arguments: str, n_files: int | None = None, verify: ssl.SSLContext | bool = True
) -> Iterator[LiveServer]:
    """A ready server with these flags; ended when left."""
    server = LiveServer(*arguments, n_files=n_files, verify=verify)
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()
