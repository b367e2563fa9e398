"""Turns between the workers of pytest-xdist: a timed test runs while no other test does."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

if sys.platform != "win32":
    import fcntl

    @contextlib.contextmanager
    def _locked(file: IO[bytes], kind: int) -> Iterator[None]:
        fcntl.flock(file, kind)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


class Turns:
    """Locks on two files of the tree, which every worker opens.

    Everybody enters `room` through `door`. A timed test keeps the door until it has ended, so that those who leave the
    room cannot enter again before it: it waits for at most one test of each other worker.
    """

    def __init__(self, room: Path, door: Path) -> None:
        self._room, self._door = room.open("rb"), door.open("rb")

    def close(self) -> None:
        self._room.close()
        self._door.close()

    @contextlib.contextmanager
    def turn(self, *, is_alone: bool) -> Iterator[None]:
        """The time of one test, alone or beside others. Windows has no such locks: all run beside others there."""
        if sys.platform == "win32":
            yield
        elif is_alone:
            with _locked(self._door, fcntl.LOCK_EX), _locked(self._room, fcntl.LOCK_EX):
                yield
        else:
            with contextlib.ExitStack() as stack:
                with _locked(self._door, fcntl.LOCK_EX):
                    stack.enter_context(_locked(self._room, fcntl.LOCK_SH))
                yield
