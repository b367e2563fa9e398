"""What runs in the engine's process: drain the inbox, step, send what happened; until the other side is gone.

Imported by the API process too, which only names `main`: nothing heavy is imported before the child calls it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import logging.handlers
import queue
import time
from multiprocessing.connection import Connection
from typing import Protocol

from ggufd.engine.messages.config import EngineConfig
from ggufd.engine.messages.events import Output
from ggufd.engine.messages.reports import Event, LoadFailed, Loading, LogLine, Pong, QueueState, SlotDone, Stats, Steps
from ggufd.engine.messages.requests import (
    Abort,
    ActOnSlot,
    Command,
    EmbedRequest,
    EngineRequest,
    FinishSequence,
    GetQueue,
    GetStats,
    GetSteps,
    Ping,
    Shutdown,
)
from ggufd.errors import ModelError, ModelTooLarge


class SteppedEngine(Protocol):
    """What the main loop drives: `engine.Engine`, or one that makes vectors only."""

    @property
    def has_work(self) -> bool: ...
    @property
    def is_preparing(self) -> bool: ...
    @property
    def next_text_s(self) -> float | None: ...
    def add(self, request: EngineRequest | EmbedRequest) -> None: ...
    def abort(self, request_id: int) -> None: ...
    def finish(self, request_id: int, index: int) -> None: ...
    def step(self) -> list[Event]: ...
    def run_idle_maintenance(self) -> bool: ...
    def stats(self) -> Stats: ...
    def queue_state(self) -> QueueState: ...
    def steps(self) -> Steps: ...
    def note_sent(self, seconds: float) -> None: ...
    def act_on_slot(self, command: ActOnSlot) -> SlotDone: ...
    def close(self, timeout_s: float) -> None: ...


NAME = "ggufd-engine"

_CLOSE_S = 3.0
"""What is to be kept on disk must be there by then."""

_PREPARE_POLL_S = 0.002
"""How often the loop looks whether a grammar is compiled, when that is all there is to wait for."""


def prepare() -> None:
    """Import what `main` will need. What stands in the way it will tell."""
    # Nothing of what is imported is garbage; to look for some takes an eighth of the time.
    gc.disable()
    from ggufd.llama import library

    with contextlib.suppress(ModelError):
        library.load()


def main(conn: Connection, config: EngineConfig) -> None:
    """Load the model, say `Ready` or `LoadFailed`, then serve until `Shutdown` or the end of the connection."""
    gc.disable()
    from ggufd.llama import library

    def report(event: Loading) -> None:
        conn.send([event])

    try:
        library.load()
        from ggufd.engine.loader import load

        loaded = load(config, report)
    except ModelError as error:
        conn.send([LoadFailed(error.message, isinstance(error, ModelTooLarge))])
        return
    # What was loaded stays, and need not be looked through between two steps.
    gc.freeze()
    gc.enable()
    conn.send([loaded.ready])
    log: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    logging.getLogger("ggufd").addHandler(logging.handlers.QueueHandler(log))
    serve(conn, loaded.engine, log, text_interval_s=config.text_interval_ms / 1000)


def serve(
    conn: Connection,
    engine: SteppedEngine,
    log: queue.SimpleQueue[logging.LogRecord] | None = None,
    *,
    text_interval_s: float = 0.0,
) -> None:
    """The main loop. Every message out is a list of events: what happened in a step, or in several where text comes
    quicker than every `text_interval_s`; the answer to a command goes before the next step.

    What this process writes into its `log`, on whatever thread, goes out with them.
    """
    post = _Post(conn, engine, text_interval_s)
    while True:
        post.events += _lines(log)
        is_tidying = not engine.has_work and not conn.poll(0) and engine.run_idle_maintenance()
        while conn.poll(0 if post.events or is_tidying else _patience_s(engine)):
            command: Command = conn.recv()
            if isinstance(command, Shutdown):
                post.send()
                engine.close(_CLOSE_S)
                return
            _obey(engine, command, post.events)
            # The next step may be a longer one.
            post.send()
        if engine.has_work:
            post.events += engine.step()
        if not post.can_wait():
            post.send()


class _Post:
    """What the engine says, until it is sent.

    Each message wakes the other process, which takes a core from those that compute, and starts with cold caches: with
    a quick model that costs more than what the message says. So text waits for the text of the next step, where that
    is there before a screen would show the first.
    """

    def __init__(self, conn: Connection, engine: SteppedEngine, interval_s: float) -> None:
        self._conn = conn
        self._engine = engine
        self._interval_s = interval_s
        self._sent_s = 0.0
        self.events: list[Event] = []

    def can_wait(self) -> bool:
        """Whether all there is to say is text, and the next comes soon enough."""
        if not self._interval_s or not all(isinstance(one, Output) and one.finish is None for one in self.events):
            return False
        next_s = self._engine.next_text_s
        return next_s is not None and time.perf_counter() + next_s <= self._sent_s + self._interval_s

    def send(self) -> None:
        """All of it, if there is anything."""
        if self.events:
            start_s = time.perf_counter()
            self._conn.send(self.events)
            self._sent_s = time.perf_counter()
            self._engine.note_sent(self._sent_s - start_s)
            self.events = []


def _lines(log: queue.SimpleQueue[logging.LogRecord] | None) -> list[Event]:
    lines: list[Event] = []
    while log is not None and not log.empty():
        record = log.get_nowait()
        lines.append(LogLine(record.levelno, record.getMessage(), record.name))
    return lines


def _patience_s(engine: SteppedEngine) -> float | None:
    """How long the next command may be waited for: for ever with nothing to do."""
    if not engine.has_work:
        return None
    return _PREPARE_POLL_S if engine.is_preparing else 0


def _resident_bytes() -> int:
    """Memory of this process that is in RAM, the mapped model included."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def _obey(engine: SteppedEngine, command: Command, events: list[Event]) -> None:
    match command:
        case EngineRequest() | EmbedRequest():
            engine.add(command)
        case Abort(request_id):
            engine.abort(request_id)
        case FinishSequence(request_id, index):
            engine.finish(request_id, index)
        case GetStats():
            events.append(dataclasses.replace(engine.stats(), resident_bytes=_resident_bytes()))
        case GetQueue():
            events.append(engine.queue_state())
        case GetSteps():
            events.append(engine.steps())
        case ActOnSlot():
            events.append(engine.act_on_slot(command))
        case Ping():
            events.append(Pong())
