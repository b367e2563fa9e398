"""Whether a child may be a copy of this process, by fork, and how such a child sees the end of its parent.

A fork shares what was imported: nothing is read or built again. It copies one thread only, so that a lock which another
one holds would be held in the copy for ever.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def end_of_this_process() -> int | None:
    """File descriptor that is ready once this process has ended, for children by fork; None where none may be forked.

    A pipe would not do: a second child has copies of the ends that belong to the first.
    """
    if sys.platform != "linux" or not _has_one_thread():
        return None
    try:
        return os.pidfd_open(os.getpid())
    except OSError:
        # Linux before 5.3, or a container that forbids it.
        return None


def _has_one_thread() -> bool:
    """Whether there is no other thread, those of C libraries included."""
    try:
        return len(list(Path("/proc/self/task").iterdir())) == 1
    except OSError:
        return False
