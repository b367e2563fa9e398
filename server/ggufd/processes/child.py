"""Child process with a message pipe: started, watched, and reaped when it ends.

Messages are pickled plain data. Sending never blocks on a busy child (`processes.sender`); received messages are
handled on the event loop or on a thread (`processes.receiver`). Knows nothing of what the messages mean.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ggufd.processes.prestarted import Main, PrestartedProcess
from ggufd.processes.receiver import Dispatch, receive
from ggufd.processes.sender import Sender

if TYPE_CHECKING:
    import psutil


class Child:
    """Running process and the pipe to it: the `prestarted` one, made for the same `main`, or a new one.

    `on_message(message)` and `on_exit(exit_code, stderr_tail)` are called on `loop`, the running one, or without one
    on a thread; `on_exit` is the last call, exactly once, however the child ended. `exit_code` is negative for a
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
        prestarted: PrestartedProcess | None = None,
    ) -> None:
        self._on_exit = on_exit
        self._process = prestarted or PrestartedProcess(name, main)
        self._process.is_taken = True
        self.pid = self._process.process.pid
        self._has_exited = threading.Event()
        self._sender = Sender(self._process.conn, name)
        receive(self._process.conn, on_message, self._reap, loop)
        self.send(args)

    @property
    def is_alive(self) -> bool:
        # A process that was joined and closed answers with a ValueError.
        try:
            return self._process.process.is_alive()
        except ValueError:
            return False

    @property
    def cpu_s(self) -> float:
        """CPU time of the process in seconds; 0 when it cannot be read."""
        import psutil

        try:
            times = self._psutil.cpu_times()
        except (psutil.Error, OSError):
            return 0.0
        return float(times.user + times.system)

    @cached_property
    def _psutil(self) -> psutil.Process:
        import psutil

        return psutil.Process(self.pid)

    def send(self, message: Any) -> None:
        """Send a message to the child; returns at once, and silently when the child is gone."""
        self._sender.send(message)

    def kill(self) -> None:
        """Kill the process; `on_exit` follows. Does nothing if it has ended."""
        self._process.kill()

    def join(self, timeout_s: float) -> bool:
        """Wait until the child has ended and `on_exit` was called; False after `timeout_s`. Not on the loop."""
        return self._has_exited.wait(timeout_s)

    def _reap(self, dispatch: Dispatch) -> None:
        """After the last message: wait for the exit, clean up, and dispatch `on_exit`. On a thread."""
        self._process.process.join()
        self._sender.close()
        dispatch(self._on_exit, *self._process.reap())
        self._has_exited.set()


class ChildSpawner:
    """Factory of `Child`ren for the same `main`, on the running loop: the `prestarted` one first.

    `args()` are the arguments of the next one.
    """

    def __init__(
        self, name: str, main: Main, args: Callable[[], tuple[Any, ...]], prestarted: PrestartedProcess | None = None
    ) -> None:
        self._name = name
        self._main = main
        self._args = args
        self._prestarted = prestarted

    def __call__(self, on_message: Callable[[Any], None], on_exit: Callable[[int, str], None], /) -> Child:
        """Start it. Raises OSError when none can be started."""
        prestarted, self._prestarted = self._prestarted, None
        loop = asyncio.get_running_loop()
        return Child(self._name, self._main, self._args(), on_message, on_exit, loop, prestarted)
