"""A child process that may die: started, talked to, watched, and ended.

Messages are pickled plain data over a pipe. Nothing here waits for a busy child (`engine.sender`), and what it says is
read where it is wanted (`engine.reader`). Knows nothing of what the messages mean.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import cached_property
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import psutil

from server.engine.reader import Tell, read
from server.engine.sender import Sender

logger = logging.getLogger(__name__)

Main = Callable[..., None]
"""What runs in the child: `main(connection, *args)`. It ends when the connection does."""

_STDERR_TAIL_BYTES = 4096


class Child:
    """One process and the pipe to it.

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
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._on_exit = on_exit
        self._conn, child_conn = context.Pipe()
        self._stderr = _StderrFile(name)
        self._process = context.Process(
            target=_bootstrap, args=(main, child_conn, self._stderr.path, args), name=name, daemon=True
        )
        try:
            with _signals_held():
                self._process.start()
        except OSError:
            self._conn.close()
            self._stderr.take()
            raise
        finally:
            child_conn.close()
        # multiprocessing asks with SIGTERM at the end of the program, and waits for ever for one that does not hear it.
        atexit.register(self.kill)
        self.pid = self._process.pid
        self._is_over = threading.Event()
        self._sender = Sender(self._conn, name)
        read(self._conn, on_message, self._bury, loop)

    @property
    def is_alive(self) -> bool:
        # A process that was joined and closed answers with a ValueError.
        try:
            return self._process.is_alive()
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
        with contextlib.suppress(ValueError):
            self._process.kill()

    def join(self, timeout_s: float) -> bool:
        """Wait until the child is gone and `on_exit` was called; False when it takes longer. Not on the loop."""
        return self._is_over.wait(timeout_s)

    def _bury(self, tell: Tell) -> None:
        """Nothing more will be said: wait for the end, clear up, and `tell(on_exit, ...)` how it was. On a thread."""
        self._process.join()
        atexit.unregister(self.kill)
        self._sender.close()
        self._conn.close()
        code = self._process.exitcode
        self._process.close()
        tell(self._on_exit, code if code is not None else 0, self._stderr.take())
        self._is_over.set()


class _StderrFile:
    """Where a child's C code writes its last words. `path` is None where no file can be made: they are lost then.

    The child takes the name away as soon as it has opened the file: whatever kills us, nothing is left.
    """

    def __init__(self, name: str) -> None:
        self.path: str | None = None
        try:
            self._descriptor, self.path = tempfile.mkstemp(prefix=f"{name}-", suffix=".stderr")
        except OSError as error:
            logger.warning("no temporary file for what %s may say when it dies: %s", name, error)

    def take(self) -> str:
        """The end of what was written; the file is gone after that."""
        if self.path is None:
            return ""
        start = max(0, os.fstat(self._descriptor).st_size - _STDERR_TAIL_BYTES)
        os.lseek(self._descriptor, start, os.SEEK_SET)
        tail = os.read(self._descriptor, _STDERR_TAIL_BYTES)
        os.close(self._descriptor)
        _remove(self.path)
        self.path = None
        return tail.decode("utf-8", "replace").strip()


def _remove(path: str) -> None:
    # Windows does not let go of a file that is open; elsewhere it may be gone already.
    with contextlib.suppress(OSError):
        Path(path).unlink()


_PARENTS_BUSINESS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """A process started meanwhile sees none of the parent's signals before its own first code has ignored them.

    Else a Ctrl-C while its interpreter starts kills it, with a traceback on the terminal. What this thread blocks is
    inherited; elsewhere in the parent the signals arrive as ever. Windows has nothing of the kind.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # It would be started on the way to the first child, and unblocks what it blocked itself.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS_BUSINESS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _bootstrap(main: Main, conn: Connection, stderr_path: str | None, args: tuple[Any, ...]) -> None:
    """First code in the child: it ends with its parent, whose business signals are; C's stderr goes to a file.

    A terminal sends Ctrl-C to all processes, a service manager SIGTERM: who drains needs its children until the end.
    """
    for number in _PARENTS_BUSINESS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    _write_no_core()
    _go_first_when_memory_ends()
    # Without this an abort in ggml starts a debugger and writes its backtrace to the terminal.
    os.environ["GGML_NO_BACKTRACE"] = "1"
    _redirect_stderr(stderr_path)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        main(conn, *args)


def _end_with_parent() -> None:
    """Leave when the parent is gone, however it went, whatever is computed here."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _write_no_core() -> None:
    """A death is told when the process is gone, which takes minutes while it writes a model's memory to the disk."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _go_first_when_memory_ends() -> None:
    """Linux ends one process then: a child, which is started again, and not the parent that would do that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def _redirect_stderr(path: str | None) -> None:
    sys.stderr.flush()
    if path is None:
        descriptor = os.open(os.devnull, os.O_WRONLY)
    else:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        _remove(path)
    os.dup2(descriptor, 2)
    os.close(descriptor)
