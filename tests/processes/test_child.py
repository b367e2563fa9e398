"""A child process that may die: what it says, how it ended, and that nothing is left of it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest

from ggufd.processes.child import Child
from ggufd.processes.prestarted import PrestartedProcess

WAIT_S = 60.0


def echo(conn: Connection, prefix: str) -> None:
    while True:
        message = conn.recv()
        if message is None:
            return
        conn.send((prefix, message))


def fail(conn: Connection) -> None:
    raise RuntimeError("it went wrong")


def write_to_stderr_of_c(conn: Connection) -> None:
    os.write(2, b"x" * 10_000 + b"\nlast words \xff\n")
    sys.exit(7)


def tell_signals(conn: Connection) -> None:
    ignored = all(signal.getsignal(number) == signal.SIG_IGN for number in (signal.SIGINT, signal.SIGTERM))
    conn.send((ignored, os.environ.get("GGML_NO_BACKTRACE")))


def tell_who_goes_first(conn: Connection) -> None:
    conn.send(int(Path("/proc/self/oom_score_adj").read_text()))


def tell_name(conn: Connection) -> None:
    conn.send(Path("/proc/self/comm").read_text())


def never_read(conn: Connection) -> None:
    conn.send("started")
    time.sleep(WAIT_S)


def compute_for_ever(conn: Connection) -> None:
    conn.send(os.getpid())
    while True:
        pass


def start_and_wait(conn: Connection) -> None:
    """A parent with a busy child of its own, whose pid it tells."""
    child = Child("test-grandchild", compute_for_ever, (), conn.send, lambda code, stderr: None)
    child.join(WAIT_S)


def make_ready() -> None:
    os.environ["PREPARED"] = "1"


def fail_to_prepare() -> None:
    raise RuntimeError("nothing is here")


def tell_what_was_prepared(conn: Connection, word: str) -> None:
    conn.send((word, os.environ.get("PREPARED")))


class Parent:
    """Collects what a child says and how it ended."""

    def __init__(self, main: Any, *args: Any, prestarted: PrestartedProcess | None = None) -> None:
        self.messages: list[Any] = []
        self.exits: list[tuple[int, str]] = []
        self._changed = threading.Condition()
        self.child = Child("test-child", main, args, self._on_message, self._on_exit, prestarted=prestarted)

    def _on_message(self, message: Any) -> None:
        with self._changed:
            assert not self.exits, "a message after the exit"
            self.messages.append(message)
            self._changed.notify_all()

    def _on_exit(self, code: int, stderr: str) -> None:
        with self._changed:
            self.exits.append((code, stderr))
            self._changed.notify_all()

    def wait_for_messages(self, n: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.messages) >= n, WAIT_S)

    def wait_for_exit(self) -> tuple[int, str]:
        with self._changed:
            assert self._changed.wait_for(lambda: self.exits, WAIT_S)
        assert self.child.join(WAIT_S)
        assert len(self.exits) == 1
        return self.exits[0]


@pytest.fixture(autouse=True)
def _no_files_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot hold signals back")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_its_interpreter_starts_does_not_end_it(number: signal.Signals) -> None:
    parent = Parent(echo, "said")
    assert parent.child.pid is not None
    os.kill(parent.child.pid, number)
    parent.child.send("still here")
    parent.wait_for_messages(1)
    parent.child.send(None)
    assert parent.wait_for_exit() == (0, "")


def test_messages_go_both_ways_in_order_and_the_end_is_told_last() -> None:
    parent = Parent(echo, "said")
    assert parent.child.is_alive
    for i in range(50):
        parent.child.send(i)
    parent.child.send(None)
    assert parent.wait_for_exit() == (0, "")
    assert parent.messages == [("said", i) for i in range(50)]


def test_an_exception_comes_back_as_its_traceback() -> None:
    code, stderr = Parent(fail).wait_for_exit()
    assert code == 1
    assert stderr.endswith("RuntimeError: it went wrong")


def test_the_tail_of_what_c_wrote_and_the_exit_code_come_back() -> None:
    code, stderr = Parent(write_to_stderr_of_c).wait_for_exit()
    assert code == 7
    assert stderr.endswith("x\nlast words �")
    assert len(stderr) <= 4096


def test_a_killed_child_has_the_signal_as_its_code() -> None:
    parent = Parent(never_read)
    parent.wait_for_messages(1)
    parent.child.kill()
    assert parent.wait_for_exit() == (-signal.SIGKILL, "")


def test_nothing_is_left_of_a_child_that_is_gone() -> None:
    parent = Parent(never_read)
    parent.wait_for_messages(1)
    pid = parent.child.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    parent.wait_for_exit()
    assert not psutil.pid_exists(pid)
    assert parent.child.pid == pid
    assert not parent.child.is_alive


def test_sending_to_and_killing_a_dead_child_is_silent() -> None:
    parent = Parent(never_read)
    parent.wait_for_messages(1)
    parent.child.kill()
    parent.wait_for_exit()
    parent.child.send("anybody there?")
    parent.child.kill()
    assert len(parent.exits) == 1


def test_a_child_that_does_not_read_blocks_nobody() -> None:
    parent = Parent(never_read)
    parent.wait_for_messages(1)
    for _ in range(50):
        parent.child.send("x" * 100_000)
    parent.child.kill()
    assert parent.wait_for_exit()[0] == -signal.SIGKILL


def test_the_child_leaves_ctrl_c_to_its_parent_and_aborts_without_a_debugger() -> None:
    parent = Parent(tell_signals)
    parent.wait_for_exit()
    assert parent.messages == [(True, "1")]


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_a_busy_child_does_not_outlive_a_parent_that_is_killed() -> None:
    # As a child of ours the parent would be a daemon, which may have no children.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    parent = context.Process(target=start_and_wait, args=(theirs,))
    parent.start()
    pid = ours.recv()
    assert psutil.pid_exists(pid)
    assert parent.pid is not None
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not psutil.pid_exists(pid)


def test_a_child_starts_where_no_temporary_file_can_be_made(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nonexistent")
    parent = Parent(write_to_stderr_of_c)
    assert parent.wait_for_exit() == (7, "")
    assert "no temporary file" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_where_memory_ends_a_child_is_ended_and_not_its_parent() -> None:
    parent = Parent(tell_who_goes_first)
    parent.wait_for_exit()
    assert parent.messages[0] > int(Path("/proc/self/oom_score_adj").read_text())


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_a_child_is_shown_with_its_name() -> None:
    parent = Parent(tell_name)
    parent.wait_for_exit()
    assert parent.messages == ["test-child\n"]


def test_a_prestarted_process_prepares_itself_and_becomes_a_child() -> None:
    prestarted = PrestartedProcess("test-prestarted", tell_what_was_prepared, make_ready)
    pid = prestarted.process.pid
    parent = Parent(tell_what_was_prepared, "hello", prestarted=prestarted)
    assert parent.wait_for_exit() == (0, "")
    assert parent.messages == [("hello", "1")]
    assert parent.child.pid == pid
    # It has been used up.
    prestarted.discard()


def test_nothing_is_left_of_a_prestarted_process_that_nobody_wanted() -> None:
    prestarted = PrestartedProcess("test-prestarted", tell_what_was_prepared, make_ready)
    pid = prestarted.process.pid
    assert pid is not None
    prestarted.discard()
    assert not psutil.pid_exists(pid)


def test_a_prestarted_process_that_died_is_a_dead_child() -> None:
    prestarted = PrestartedProcess("test-prestarted", tell_what_was_prepared, fail_to_prepare)
    prestarted.process.join()
    code, stderr = Parent(tell_what_was_prepared, "hello", prestarted=prestarted).wait_for_exit()
    assert code == 1
    assert stderr.endswith("RuntimeError: nothing is here")
