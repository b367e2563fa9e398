"""The two children of a server, started before its settings are read: they import llama.cpp meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from ggufd.chat.process import worker
from ggufd.engine import process
from ggufd.processes.prestarted import Spare


class Spares(NamedTuple):
    """Processes that wait to be told which model to load."""

    engine: Spare
    text: Spare


@contextlib.contextmanager
def started() -> Iterator[Spares | None]:
    """Both, and nothing left of one that was not used; None where they cannot be started, which is told later."""
    with contextlib.ExitStack() as stack:
        spares = None
        with contextlib.suppress(OSError):
            engine = Spare(process.NAME, process.main, process.prepare)
            stack.callback(engine.discard)
            text = Spare(worker.NAME, worker.main, worker.prepare)
            stack.callback(text.discard)
            spares = Spares(engine, text)
        yield spares
