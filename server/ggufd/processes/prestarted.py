"""A process that has been started and waits to be told what to do; it ends with its parent, and C's stderr is kept.

Imported by the child first of all, so there is little to import here.
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
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path

logger = logging.getLogger(__name__)

Main = Callable[..., None]
"""What runs in the child: `main(connection, *args)`. It ends when the connection does."""

_STDERR_TAIL_BYTES = 4096


def _nothing() -> None:
    pass


class PrestartedProcess:
    """A process that has been started, runs `prepare`, and waits to be told what `main` is to be called with.

    `prepare` may import what `main` needs. `discard` ends one that nobody had a use for. Raises OSError when none can
    be started.
    """

    def __init__(self, name: str, main: Main, prepare: Callable[[], None] = _nothing) -> None:
        context = multiprocessing.get_context("spawn")
        self.conn, child_conn = context.Pipe()
        self.stderr = _StderrFile(name)
        self.process = context.Process(
            target=_bootstrap, args=(main, prepare, child_conn, self.stderr.path), name=name, daemon=True
        )
        try:
            with _signals_held():
                self.process.start()
        except OSError:
            self.conn.close()
            self.stderr.take()
            raise
        finally:
            child_conn.close()
        # multiprocessing asks with SIGTERM at the end of the program, and waits for ever for one that does not hear it.
        atexit.register(self.kill)
        self.is_taken = False

    def kill(self) -> None:
        """End the process now. Does nothing to one that is gone."""
        with contextlib.suppress(ValueError):
            self.process.kill()

    def bury(self) -> tuple[int, str]:
        """Wait for the process's end, and clear up: its exit code, and its last words."""
        self.process.join()
        atexit.unregister(self.kill)
        self.conn.close()
        code = self.process.exitcode
        self.process.close()
        return code if code is not None else 0, self.stderr.take()

    def discard(self) -> None:
        """End the process and leave nothing of it, unless it became a `Child`."""
        if not self.is_taken:
            self.kill()
            self.bury()


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


def _bootstrap(main: Main, prepare: Callable[[], None], conn: Connection, stderr_path: str | None) -> None:
    """First code in the child: it ends with its parent, whose business signals are; C's stderr goes to a file.

    A terminal sends Ctrl-C to all processes, a service manager SIGTERM: who drains needs its children until the end.
    """
    for number in _PARENTS_BUSINESS:
        signal.signal(number, signal.SIG_IGN)
    # First, so that the file has no name any more when the parent turns out to be gone already.
    _redirect_stderr(stderr_path)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    _write_no_core()
    _go_first_when_memory_ends()
    # Without this an abort in ggml starts a debugger and writes its backtrace to the terminal.
    os.environ["GGML_NO_BACKTRACE"] = "1"
    prepare()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        main(conn, *conn.recv())


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
