"""Ray's head on this machine, started and ended by its own process id. It binds ports beyond the loopback.

Knows `ray start` and its ports; nothing of Serve.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import platformdirs
import psutil

from ggufd.cluster.serving.dashboard import Dashboard, RayError
from ggufd.cluster.serving.serve_config import CONTROLLER_VARIABLES, SERVE_VARIABLES

_START_S = 180.0
_STOP_S = 30.0
_POLL_S = 0.2
_ATTEMPTS = 3
_TOO_SLOW = "timed out during startup"
_STARTED = "will now block forever"
_OBJECT_STORE_BYTES = 100 << 20
"""No request travels through Ray: its store of objects may be small. Its own choice is 30% of the RAM."""

GCS_PORT = 6379
_FLAGS = {
    "--port": GCS_PORT,
    "--node-manager-port": 6380,
    "--object-manager-port": 6381,
    "--runtime-env-agent-port": 6382,
    "--dashboard-agent-grpc-port": 6383,
    "--dashboard-agent-listen-port": 6384,
    "--metrics-export-port": 6385,
    "--ray-client-server-port": 10001,
    "--min-worker-port": 10002,
    "--max-worker-port": 10999,
}
"""Ports that Ray would draw by chance otherwise."""

PORTS = (
    ("6379 to 6385", "Ray's head and its agents: who reaches them runs programs here"),
    ("10001 to 10999", "Ray's clients and workers: the same"),
    ("30000 to 31000", "ingresses, without HAProxy in front"),
    ("8404, 9101", "HAProxy's statistics and metrics"),
)
"""What Ray and Serve bind on all addresses, whatever they are told."""

_VARIABLES = {
    **CONTROLLER_VARIABLES,
    **SERVE_VARIABLES,
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "10",
    # Five seconds are not enough on a machine that is busy.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    # Serve has ended before Ray does, so there is nothing that its node would have to drain.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "5",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class RayHead:
    """The head that this program started, remembered in a file of `folder`."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or platformdirs.user_state_path("ggufd") / "cluster"
        self._file = self._folder / "ray.json"
        self.log = self._folder / "ray.log"
        self._launched: subprocess.Popen[bytes] | None = None

    def start(self, dashboard: Dashboard, on_wait: Callable[[], None] = lambda: None) -> None:
        """Start it and wait for its dashboard. Raises RayError with its last line."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for n_left in reversed(range(_ATTEMPTS)):
            process = self._launch()
            try:
                self._await(process, dashboard, on_wait)
                return
            except RayError as error:
                self.stop()
                # It gives its own processes half a minute, which no setting changes.
                if not n_left or _TOO_SLOW not in error.message:
                    raise
            except BaseException:
                self.stop()
                raise

    def _launch(self) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as log:
            # A session of its own: Ctrl-C here is not for it.
            process = subprocess.Popen(
                _command(),
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._launched = process
        self._file.write_text(json.dumps({"pid": process.pid, "created": psutil.Process(process.pid).create_time()}))
        return process

    def _await(self, process: subprocess.Popen[bytes], dashboard: Dashboard, on_wait: Callable[[], None]) -> None:
        deadline_s = time.monotonic() + _START_S
        # The dashboard answers before the node is there, and goes again where that does not come.
        while not (self._has_started() and dashboard.is_there()):
            if process.poll() is not None:
                raise RayError(f"Ray ended with {process.returncode}: {self._last_line()}")
            if time.monotonic() > deadline_s:
                raise RayError(f"Ray is not ready in time: {self._last_line()}; its log is {self.log}")
            on_wait()
            time.sleep(_POLL_S)

    def process(self) -> psutil.Process | None:
        """Its process; None where this program started none that still runs."""
        try:
            told = json.loads(self._file.read_text())
            found = psutil.Process(told["pid"])
            # A process id is used again by others.
            return found if abs(found.create_time() - told["created"]) < 1 else None
        except (OSError, ValueError, KeyError, psutil.Error):
            return None

    def stop(self) -> bool:
        """End it with all its processes; False where this program started none that still runs."""
        found = self.process()
        if found is None:
            self._forget()
            return False
        everybody = [found, *found.children(recursive=True)]
        found.terminate()
        psutil.wait_procs([found], _STOP_S)
        _, left = psutil.wait_procs(everybody, 5)
        for one in left:
            one.kill()
        psutil.wait_procs(left, 5)
        self._forget()
        return True

    def _forget(self) -> None:
        self._file.unlink(missing_ok=True)
        if self._launched is not None:
            self._launched.poll()

    def _has_started(self) -> bool:
        with contextlib.suppress(OSError):
            return _STARTED in self.log.read_text("utf-8", "replace")
        return False

    def _last_line(self) -> str:
        try:
            lines = [line.strip() for line in self.log.read_text("utf-8", "replace").splitlines() if line.strip()]
        except OSError:
            lines = []
        return lines[-1][:300] if lines else "it said nothing"


def _environment() -> dict[str, str]:
    """This process's, in which a user may have set other values. Paths are absolute: workers start elsewhere."""
    variables = {**_VARIABLES, **os.environ, **CONTROLLER_VARIABLES}
    if paths := variables.get("PYTHONPATH"):
        variables["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths.split(os.pathsep) if path)
    return variables


def _command() -> list[str]:
    ports = [f"{flag}={port}" for flag, port in _FLAGS.items()]
    fixed = ["--head", "--block", "--disable-usage-stats", "--dashboard-host=127.0.0.1", "--dashboard-port=8265"]
    store = f"--object-store-memory={_OBJECT_STORE_BYTES}"
    return [sys.executable, "-P", "-m", "ray.scripts.scripts", "start", *fixed, store, *ports]
