"""A child process that may die: started, talked to, watched, and ended.

Messages are pickled plain data over a pipe. Two threads stand on the parent's side, one that reads and one that
writes, so a busy child never blocks the caller. Knows nothing of what the messages mean.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Main = Callable[..., None]
"""What runs in the child: `main(connection, *args)`. It ends when the connection does."""

_STDERR_TAIL_BYTES = 4096


class Child:
    """One process and the pipe to it.

    `on_message(message)` and `on_exit(exit_code, stderr_tail)` are called on the reader's thread; `on_exit` is the
    last call, exactly once, however the child ended. `exit_code` is negative for a signal, as in `multiprocessing`.
    """

    def __init__(
        self,
        name: str,
        main: Main,
        args: tuple[Any, ...],
        on_message: Callable[[Any], None],
        on_exit: Callable[[int, str], None],
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._on_message = on_message
        self._on_exit = on_exit
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._conn, child_conn = context.Pipe()
        descriptor, stderr_name = tempfile.mkstemp(prefix=f"{name}-", suffix=".stderr")
        os.close(descriptor)
        self._stderr = Path(stderr_name)
        self._process = context.Process(
            target=_bootstrap, args=(main, child_conn, stderr_name, args), name=name, daemon=True
        )
        self._process.start()
        self.pid = self._process.pid
        child_conn.close()
        self._reader = threading.Thread(target=self._read, name=f"{name}-reader", daemon=True)
        self._writer = threading.Thread(target=self._write, name=f"{name}-writer", daemon=True)
        # The reader joins the writer when the child ends, which may be at once.
        self._writer.start()
        self._reader.start()

    @property
    def is_alive(self) -> bool:
        # A process that was joined and closed answers with a ValueError.
        try:
            return self._process.is_alive()
        except ValueError:
            return False

    def send(self, message: Any) -> None:
        """Queue a message for the child; returns at once, and silently when the child is gone."""
        self._outbox.put(message)

    def kill(self) -> None:
        """End the process now; `on_exit` follows. Does nothing to one that is gone."""
        with contextlib.suppress(ValueError):
            self._process.kill()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end of the child and of both threads; False when it takes longer."""
        self._reader.join(timeout_s)
        return not self._reader.is_alive()

    def _read(self) -> None:
        while True:
            try:
                message = self._conn.recv()
            except (EOFError, OSError):
                break
            self._on_message(message)
        self._process.join()
        self._outbox.put(_CLOSE)
        self._writer.join()
        self._conn.close()
        code = self._process.exitcode
        self._process.close()
        self._on_exit(code if code is not None else 0, self._stderr_tail())

    def _write(self) -> None:
        while (message := self._outbox.get()) is not _CLOSE:
            with contextlib.suppress(OSError):
                self._conn.send(message)

    def _stderr_tail(self) -> str:
        with contextlib.suppress(OSError):
            tail = self._stderr.read_bytes()[-_STDERR_TAIL_BYTES:]
            self._stderr.unlink()
            return tail.decode("utf-8", "replace").strip()
        return ""


_CLOSE = object()


def _bootstrap(main: Main, conn: Connection, stderr_path: str, args: tuple[Any, ...]) -> None:
    """First code in the child: C's stderr goes to a file, Ctrl-C is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Without this an abort in ggml starts a debugger and writes its backtrace to the terminal.
    os.environ["GGML_NO_BACKTRACE"] = "1"
    descriptor = os.open(stderr_path, os.O_WRONLY | os.O_APPEND)
    sys.stderr.flush()
    os.dup2(descriptor, 2)
    os.close(descriptor)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        main(conn, *args)
