"""The two children of a server, started before its settings are read: they import llama.cpp meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from ggufd.chat.process import worker
from ggufd.engine import process
from ggufd.processes.prestarted import PrestartedProcess


class PrestartedProcesses(NamedTuple):
    """Processes that wait to be told which model to load."""

    engine: PrestartedProcess
    text: PrestartedProcess


@contextlib.contextmanager
def started() -> Iterator[PrestartedProcesses | None]:
    """Both, and nothing left of one that was not used; None where they cannot be started, which is told later."""
    with contextlib.ExitStack() as stack:
        spares = None
        with contextlib.suppress(OSError):
            engine = PrestartedProcess(process.NAME, process.main, process.prepare)
            stack.callback(engine.discard)
            text = PrestartedProcess(worker.NAME, worker.main, worker.prepare)
            stack.callback(text.discard)
            spares = PrestartedProcesses(engine, text)
        yield spares
