"""A child process that may die: started, talked to, watched, and ended.

Messages are pickled plain data over a pipe. Nothing here waits for a busy child (`processes.sender`), and what it says
is read where it is wanted (`processes.receiver`). Knows nothing of what the messages mean.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any

import psutil

from ggufd.processes.prestarted import Main, PrestartedProcess
from ggufd.processes.receiver import Tell, read
from ggufd.processes.sender import Sender


class Child:
    """One process and the pipe to it. A spare one, which was made for the same `main`, is used up; else one is started.

    `on_message(message)` and `on_exit(exit_code, stderr_tail)` are called on `loop`, the one that runs now, or without
    one on a thread; `on_exit` is the last call, exactly once, however the child ended. `exit_code` is negative for a
    signal, as in `multiprocessing`.
    """

    def __init__(
        self,
        name: str,
        main: Main,
        args: tuple[Any, ...],
        on_message: Callable[[Any], None],
        on_exit: Callable[[int, str], None],
        loop: asyncio.AbstractEventLoop | None = None,
        spare: PrestartedProcess | None = None,
    ) -> None:
        self._on_exit = on_exit
        self._body = spare or PrestartedProcess(name, main)
        self._body.is_taken = True
        self.pid = self._body.process.pid
        self._is_over = threading.Event()
        self._sender = Sender(self._body.conn, name)
        read(self._body.conn, on_message, self._bury, loop)
        self.send(args)

    @property
    def is_alive(self) -> bool:
        # A process that was joined and closed answers with a ValueError.
        try:
            return self._body.process.is_alive()
        except ValueError:
            return False

    @property
    def cpu_s(self) -> float:
        """How much of the processor it has had, in seconds; 0 when that cannot be known."""
        try:
            times = self._seen.cpu_times()
        except (psutil.Error, OSError):
            return 0.0
        return float(times.user + times.system)

    @cached_property
    def _seen(self) -> psutil.Process:
        return psutil.Process(self.pid)

    def send(self, message: Any) -> None:
        """Send a message to the child; returns at once, and silently when the child is gone."""
        self._sender.send(message)

    def kill(self) -> None:
        """End the process now; `on_exit` follows. Does nothing to one that is gone."""
        self._body.kill()

    def join(self, timeout_s: float) -> bool:
        """Wait until the child is gone and `on_exit` was called; False when it takes longer. Not on the loop."""
        return self._is_over.wait(timeout_s)

    def _bury(self, tell: Tell) -> None:
        """Nothing more will be said: wait for the end, clear up, and `tell(on_exit, ...)` how it was. On a thread."""
        self._body.process.join()
        self._sender.close()
        tell(self._on_exit, *self._body.bury())
        self._is_over.set()
