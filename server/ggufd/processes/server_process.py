"""Server program as a child: its output line by line, the address that it prints when it is ready, its end.

Knows no HTTP, and nothing of what the server does.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from ggufd.errors import StartupError

_ADDRESS = re.compile(r"https?://[\w.:\[\]-]+(?=/v1\b)")
"""The address of an API, as a start summary shows it."""

_KEPT_LINES = 50
_WIDTH = "200"
"""Columns of the output, so that no address is wrapped."""

_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""
"""Program that becomes another one, which is killed when its parent is gone (1 is PR_SET_PDEATHSIG).

In place of a function that the child calls before its program starts: with one, Python forks as POSIX has it, and the
child calls what libraries ask to be called in it. gRPC's, in an actor of Ray, may abort there, and Ray's handler of
that sets an alarm which ends the program that was started three seconds later.
"""


class ServerProcess:
    """Running server program, which ends with this process, however that ends (where the system can do that: Linux).

    `on_line` gets each line of its output, on a thread. Raises StartupError where it cannot be run.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        on_line: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._command = list(command)
        self._environment = {**(os.environ if environment is None else environment), "COLUMNS": _WIDTH}
        self._environment["PYTHONUNBUFFERED"] = "1"
        self._folder = folder
        self._on_line = on_line
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self.address: Future[str] = Future()
        """URL without a path, once the program has printed it; StartupError when it ended before."""
        self._started: Future[subprocess.Popen[str]] = Future()
        self._reader = threading.Thread(target=self._run, name="server-output", daemon=True)
        self._reader.start()
        self._process = self._started.result()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended, negative for a signal; None while it runs."""
        return self._process.poll()

    @property
    def last_line(self) -> str:
        """What it said last that was not blank."""
        return next((line.strip()[:300] for line in reversed(self._lines) if line.strip()), "it said nothing")

    def wait_address(self, timeout_s: float) -> str:
        """The URL that it prints when it is ready. Raises StartupError when it ends before, or is too slow."""
        try:
            return self.address.result(timeout_s)
        except TimeoutError:
            what = "the server that was started is not ready in time"
            raise StartupError(f"{what}; its last line: {self.last_line}") from None

    def stop(self, timeout_s: float) -> None:
        """Ask it to end, wait for that, and kill it at the deadline."""
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _run(self) -> None:
        # The system counts the thread that started a child as its parent: this one lives as long as the child.
        try:
            process = self._spawn()
        except OSError as error:
            self._started.set_exception(StartupError(f"{self._command[0]} cannot be run: {error.strerror or error}"))
            return
        self._started.set_result(process)
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                self._note(line.rstrip("\n"))
        code = process.wait()
        if not self.address.done():
            self.address.set_exception(StartupError(f"the server that was started ended with {code}: {self.last_line}"))

    def _spawn(self) -> subprocess.Popen[str]:
        if shutil.which(self._command[0], path=self._environment.get("PATH")) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return subprocess.Popen(
            ending_with_parent(self._command),
            env=self._environment,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )

    def _note(self, line: str) -> None:
        self._lines.append(line)
        if not self.address.done() and (found := _ADDRESS.search(line)):
            self.address.set_result(found[0])
        self._on_line(line)


def ending_with_parent(command: Sequence[str]) -> list[str]:
    """Command line of a child of this process that is killed when the thread that starts it has ended (Linux)."""
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _WITH_PARENT, str(os.getpid()), *command]
