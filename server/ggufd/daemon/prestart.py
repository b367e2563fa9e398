"""Prestarted child processes: they import llama.cpp while the settings are read."""

from __future__ import annotations

import contextlib
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
        prestarted = None
        with contextlib.suppress(OSError):
            engine = PrestartedProcess(process.NAME, process.main, process.prepare)
            stack.callback(engine.discard)
            text = PrestartedProcess(worker.NAME, worker.main, worker.prepare)
            stack.callback(text.discard)
            prestarted = PrestartedProcesses(engine, text)
        yield prestarted
