"""Prestarted child processes: they import what they need while the settings are read.

This process has imported the messages that cross between all three, and nothing more: its children are copies of it.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import NamedTuple

from ggufd.chat.process import worker
from ggufd.engine import process
from ggufd.processes.prestarted import PrestartedProcess


class PrestartedProcesses(NamedTuple):
    """Engine and text process that wait for the model to load."""

    engine: PrestartedProcess
    text: PrestartedProcess


@contextlib.contextmanager
def started() -> Iterator[PrestartedProcesses | None]:
    """Both processes, discarded at the end if unused; None if they cannot be started, which is reported later."""
    with contextlib.ExitStack() as stack:
        stack.callback(gc.enable)
        prestarted = None
        with contextlib.suppress(OSError):
            engine = PrestartedProcess(process.NAME, process.main, process.prepare, may_fork=True)
            stack.callback(engine.discard)
            text = PrestartedProcess(worker.NAME, worker.main, worker.prepare, may_fork=True)
            stack.callback(text.discard)
            prestarted = PrestartedProcesses(engine, text)
        yield prestarted
