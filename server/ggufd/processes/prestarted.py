"""Prestarted process that waits for its arguments; it ends with its parent, and C's stderr is kept.

The child imports this first, so it imports little.
"""

from __future__ import annotations

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
from multiprocessing import resource_tracker, util
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from ggufd.processes import forking

logger = logging.getLogger(__name__)

Main = Callable[..., None]
"""Main function of the child: `main(connection, *args)`. Returns when the connection ends."""

_STDERR_TAIL_BYTES = 4096


def _nothing() -> None:
    pass


class PrestartedProcess:
    """Process that runs `prepare` at once, and `main` when it receives the arguments for it.

    `prepare` may import what `main` needs. `discard` ends a process that was not used. With `may_fork` it is a copy of
    this process where that is safe, and knows all that is imported here already. Raises OSError when it cannot be
    started.
    """

    def __init__(
        self, name: str, main: Main, prepare: Callable[[], None] = _nothing, *, may_fork: bool = False
    ) -> None:
        parent = forking.end_of_this_process() if may_fork else None
        self.conn, child_conn = multiprocessing.Pipe()
        self.stderr = _StderrFile(name)
        arguments = (name, main, prepare, child_conn, self.stderr.path, parent)
        self.process = _process_type(is_fork=parent is not None)(
            target=_bootstrap, args=arguments, name=name, daemon=True
        )
        # A copy of this end, in this child or in a later one, would hide from the child that it was closed.
        util.register_after_fork(self.conn, Connection.close)
        try:
            with _signals_blocked(is_fork=parent is not None):
                self.process.start()
        except OSError:
            self.conn.close()
            self.stderr.read_tail()
            raise
        finally:
            child_conn.close()
            if parent is not None:
                os.close(parent)
        # At exit multiprocessing sends SIGTERM and waits for ever, and the child ignores that signal.
        atexit.register(self.kill)
        self.is_taken = False

    def kill(self) -> None:
        """Kill the process. Does nothing if it has ended."""
        with contextlib.suppress(ValueError):
            self.process.kill()

    def reap(self) -> tuple[int, str]:
        """Wait for the exit and clean up; returns the exit code and the end of stderr."""
        self.process.join()
        atexit.unregister(self.kill)
        self.conn.close()
        code = self.process.exitcode
        self.process.close()
        return code if code is not None else 0, self.stderr.read_tail()

    def discard(self) -> None:
        """End the process and clean up, unless it became a `Child`."""
        if not self.is_taken:
            self.kill()
            self.reap()


def _process_type(*, is_fork: bool) -> type[BaseProcess]:
    if is_fork:
        return multiprocessing.get_context("fork").Process
    return multiprocessing.get_context("spawn").Process


class _StderrFile:
    """Temporary file for the stderr of a child's C code. `path` is None if it cannot be made; the output is lost then.

    The child unlinks the file as soon as it has opened it, so that nothing is left, whatever kills us.
    """

    def __init__(self, name: str) -> None:
        self.path: str | None = None
        try:
            self._descriptor, self.path = tempfile.mkstemp(prefix=f"{name}-", suffix=".stderr")
        except OSError as error:
            logger.warning("no temporary file for the stderr of %s: %s", name, error)

    def read_tail(self) -> str:
        """End of what was written; deletes the file."""
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
    # Windows cannot delete an open file; elsewhere it may be gone already.
    with contextlib.suppress(OSError):
        Path(path).unlink()


_PARENT_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextlib.contextmanager
def _signals_blocked(*, is_fork: bool) -> Iterator[None]:
    """Block the parent's signals for a process started meanwhile, until its first code ignores them.

    Else a Ctrl-C while its interpreter starts kills it, with a traceback on the terminal. The child inherits this
    thread's mask; other threads of the parent still get the signals. Windows has no such masks.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    if not is_fork:
        # Otherwise the first child starts it, and it unblocks the signals that it blocked itself.
        resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENT_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _bootstrap(
    name: str,
    main: Main,
    prepare: Callable[[], None],
    conn: Connection,
    stderr_path: str | None,
    parent: int | None,
) -> None:
    """First code in the child: ignore signals, end with the parent, redirect C's stderr to a file.

    A terminal sends Ctrl-C to all processes, a service manager SIGTERM; a parent that drains needs its children. In a
    fork `parent` is the descriptor that tells of its end.
    """
    for number in _PARENT_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # First, so that the file is unlinked even if the parent is gone already.
    _redirect_stderr(stderr_path)
    _show_name(name)
    ParentWatch(parent).start()
    _disable_core_dumps()
    _prefer_for_oom_kill()
    # Without this an abort in ggml starts a debugger and writes its backtrace to the terminal.
    os.environ["GGML_NO_BACKTRACE"] = "1"
    prepare()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        main(conn, *conn.recv())


class ParentWatch(threading.Thread):
    """Thread that ends this process when its parent has ended, even in the middle of a computation.

    Calls `before_exit` first: what only the parent would have cleaned up. `descriptor` is ready when the parent has
    ended; without one it is what multiprocessing has for that.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        super().__init__(name="parent", daemon=True)
        self.before_exit: Callable[[], None] = _nothing
        self._descriptor = descriptor

    def run(self) -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        wait([parent.sentinel if self._descriptor is None else self._descriptor])
        with contextlib.suppress(Exception):
            self.before_exit()
        os._exit(1)


def before_exit_with_parent(clean: Callable[[], None]) -> None:
    """Have `clean` called when the parent of this child process has ended, and this one ends with it."""
    for thread in threading.enumerate():
        if isinstance(thread, ParentWatch):
            thread.before_exit = clean


def end_with_parent(timeout_s: float = 5.0) -> None:
    """Wait to be ended with the parent, whose pipe is closed a moment before its end is noticed.

    A child that returned at once would not clean up. Returns after `timeout_s` where the parent goes on.
    """
    for thread in threading.enumerate():
        if isinstance(thread, ParentWatch):
            thread.join(timeout_s)


def _show_name(name: str) -> None:
    """Have `ps` and `top` of Linux tell the processes apart; threads that are started later have the name too."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)


def _disable_core_dumps() -> None:
    """Disable core dumps: writing a model's memory takes minutes, in which the exit is not reported."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _prefer_for_oom_kill() -> None:
    """Make Linux's OOM killer choose a child, which is restarted, and not the parent, which restarts it."""
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
