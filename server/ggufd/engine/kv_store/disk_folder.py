"""Folder of a disk cache, which one engine has at a time; engines that share one get a subfolder each.

The claim is a lock on a file, which the system gives up when the engine's process ends, however it ends: the next
engine then has that folder, and what lies there. Where a file system knows no locks, nothing is claimed.
"""

from __future__ import annotations

import errno
import os
import weakref
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

_LOCK = ".lock"
_MAX_ENGINES = 256
"""So many engines may share one folder."""

_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
"""Errors of a lock that somebody else has."""


class DiskFolder:
    """`root`, or where another living engine has it the first of its subfolders 2, 3, ... that none has.

    Raises OSError.
    """

    def __init__(self, root: Path) -> None:
        for number in range(1, _MAX_ENGINES + 1):
            self.path = root if number == 1 else root / str(number)
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(BlockingIOError):
                # The lock ends with this object, if not before.
                self._release = weakref.finalize(self, _close, _locked(self.path / _LOCK))
                return
        raise OSError(errno.EBUSY, f"{_MAX_ENGINES} engines keep chats there already", str(root))

    def release(self) -> None:
        """Give the folder up."""
        self._release()


def _locked(path: Path) -> int | None:
    """Descriptor of the file, which is locked; None where there are no locks. Raises BlockingIOError if it is taken."""
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in _HELD:
            raise BlockingIOError from None
        return None
    return descriptor


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)
