"""Children that are copies of a process which has imported what they need."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ggufd.processes import forking

WAIT_S = 60.0


class Program:
    """Running `prestarting`: what its two children told, and their pids."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.programs.prestarting", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        self.pid = self._process.pid
        self.told = self._answer()
        self.children = [psutil.Process(pid) for *_, pid in self.told]

    def close(self, index: int) -> Any:
        """Exit code of a child after its pipe was closed."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{index}\n")
        self._process.stdin.flush()
        return self._answer()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@pytest.fixture
def program() -> Iterator[Program]:
    one = Program()
    yield one
    one.kill()


linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every child is started anew")


@linux
def test_a_child_knows_what_was_imported_before_and_has_this_process_as_its_parent(program: Program) -> None:
    assert [told[:3] for told in program.told] == [["one", ["before"], program.pid], ["two", ["before"], program.pid]]
    assert [child.name() for child in program.children] == ["one", "two"]


@linux
def test_no_process_is_started_that_keeps_book_of_others(program: Program) -> None:
    assert psutil.Process(program.pid).children(recursive=True) == program.children


@linux
@pytest.mark.parametrize("first", [0, 1])
def test_a_child_sees_the_end_of_its_pipe_while_the_other_lives(program: Program, first: int) -> None:
    assert program.close(first) == 0
    assert program.children[1 - first].is_running()
    assert program.close(1 - first) == 0


@linux
def test_none_outlives_a_parent_that_is_killed(program: Program) -> None:
    program.children[1].send_signal(signal.SIGSTOP)
    program.kill()
    # The one that stands still has copies of the other's pipes: that one ends all the same.
    assert psutil.wait_procs(program.children[:1], WAIT_S)[1] == []
    # Killed by what tells of the parent's end, it is gone already.
    with contextlib.suppress(psutil.NoSuchProcess):
        program.children[1].send_signal(signal.SIGCONT)
    assert psutil.wait_procs(program.children[1:], WAIT_S)[1] == []


def test_beside_another_thread_a_child_is_started_anew() -> None:
    program = Program("thread")
    try:
        assert [told[1] for told in program.told] == [[], []]
        assert program.close(0) == program.close(1) == 0
    finally:
        program.kill()


@linux
def test_where_no_end_can_be_told_none_is_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(pid: int, flags: int = 0) -> int:
        raise PermissionError("not in this container")

    monkeypatch.setattr(os, "pidfd_open", forbidden)
    assert forking.end_of_this_process() is None
