"""Main loop of the engine's process: read commands, step, send events.

The API process imports this module too, for the name of `main`: nothing heavy is imported before the child calls it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import logging.handlers
import queue
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Protocol

from ggufd.engine.messages.config import EngineConfig
from ggufd.engine.messages.events import Output
from ggufd.engine.messages.reports import (
    ChatsSaved,
    Event,
    LiveState,
    LoadFailed,
    Loading,
    LogLine,
    Pong,
    QueueState,
    SlotDone,
    Stats,
    Steps,
)
from ggufd.engine.messages.requests import (
    Abort,
    ActOnSlot,
    AdoptChat,
    ChargeElsewhere,
    Command,
    EmbedRequest,
    EngineRequest,
    FinishSequence,
    GetLive,
    GetQueue,
    GetStats,
    GetSteps,
    HoldElsewhere,
    Ping,
    SaveChats,
    Shutdown,
)
from ggufd.errors import ModelError, ModelTooLarge


class SteppedEngine(Protocol):
    """Engine that the main loop drives: `engine.Engine`, or `VectorEngine`."""

    @property
    def has_work(self) -> bool: ...
    @property
    def is_preparing(self) -> bool: ...
    @property
    def next_text_s(self) -> float | None: ...
    def add(self, request: EngineRequest | EmbedRequest) -> None: ...
    def abort(self, request_id: int) -> None: ...
    def finish(self, request_id: int, index: int) -> None: ...
    def charge_elsewhere(self, costs: Sequence[tuple[str, float]]) -> None: ...
    def hold_elsewhere(self, held: Sequence[tuple[str, int]]) -> None: ...
    def step(self) -> list[Event]: ...
    def run_idle_maintenance(self) -> bool: ...
    def stats(self) -> Stats: ...
    def queue_state(self) -> QueueState: ...
    def steps(self) -> Steps: ...
    def live_state(self) -> LiveState: ...
    def note_sent(self, seconds: float) -> None: ...
    def act_on_slot(self, command: ActOnSlot) -> SlotDone: ...
    def save_chats(self) -> ChatsSaved: ...
    def adopt_chat(self, chat: AdoptChat) -> None: ...
    def close(self, timeout_s: float) -> None: ...


NAME = "ggufd-engine"

_CLOSE_S = 3.0
"""Time for saving the cache to disk at shutdown."""

_PREPARE_POLL_S = 0.002
"""Poll interval for a grammar that is being compiled, when there is nothing else to do."""


def prepare() -> None:
    """Import what `main` will need; that the library cannot be loaded is reported by `main`."""
    # Imports leave no garbage; looking for some takes an eighth of the time.
    gc.disable()
    from ggufd.llama import library

    with contextlib.suppress(ModelError):
        library.load()
        import ggufd.engine.loader  # noqa: F401


def main(conn: Connection, config: EngineConfig) -> None:
    """Load the model, send `Ready` or `LoadFailed`, then serve until `Shutdown` or the end of the connection."""
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
    # What was loaded stays: the collector need not look through it between two steps.
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
    """Main loop: commands in, lists of events out.

    A message has the events of a step, or of several where text comes quicker than every `text_interval_s`; the reply
    to a command is sent before the next step. Records in `log`, from any thread, are sent along.
    """
    sender = _EventSender(conn, engine, text_interval_s)
    while True:
        sender.events += _log_events(log)
        has_idle_work = not engine.has_work and not conn.poll(0) and engine.run_idle_maintenance()
        while conn.poll(0 if sender.events or has_idle_work else _poll_timeout_s(engine)):
            command: Command = conn.recv()
            if isinstance(command, Shutdown):
                sender.send()
                engine.close(_CLOSE_S)
                return
            _handle(engine, command, sender.events)
            # The next step may be a longer one.
            sender.send()
        if engine.has_work:
            sender.events += engine.step()
        if not sender.can_wait():
            sender.send()


class _EventSender:
    """Coalescing of events into messages.

    Each message wakes the other process, which takes a core from the compute threads and starts with cold caches: with
    a quick model that costs more than the step. So text waits for the text of the next step, where that comes before a
    screen would show the first.
    """

    def __init__(self, conn: Connection, engine: SteppedEngine, interval_s: float) -> None:
        self._conn = conn
        self._engine = engine
        self._interval_s = interval_s
        self._sent_s = 0.0
        self.events: list[Event] = []

    def can_wait(self) -> bool:
        """Whether all pending events are text, and the next comes soon enough."""
        if not self._interval_s or not all(isinstance(one, Output) and one.finish is None for one in self.events):
            return False
        next_s = self._engine.next_text_s
        return next_s is not None and time.perf_counter() + next_s <= self._sent_s + self._interval_s

    def send(self) -> None:
        """Send the pending events, if there are any."""
        if self.events:
            start_s = time.perf_counter()
            self._conn.send(self.events)
            self._sent_s = time.perf_counter()
            self._engine.note_sent(self._sent_s - start_s)
            self.events = []


def _log_events(log: queue.SimpleQueue[logging.LogRecord] | None) -> list[Event]:
    lines: list[Event] = []
    while log is not None and not log.empty():
        record = log.get_nowait()
        lines.append(LogLine(record.levelno, record.getMessage(), record.name))
    return lines


def _poll_timeout_s(engine: SteppedEngine) -> float | None:
    """How long to wait for a command: without end when there is nothing to do (None)."""
    if not engine.has_work:
        return None
    return _PREPARE_POLL_S if engine.is_preparing else 0


def _resident_bytes() -> int:
    """Resident set size of this process, the mapped model included."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def _handle(engine: SteppedEngine, command: Command, events: list[Event]) -> None:
    match command:
        case EngineRequest() | EmbedRequest():
            engine.add(command)
        case Abort(request_id):
            engine.abort(request_id)
        case FinishSequence(request_id, index):
            engine.finish(request_id, index)
        case ChargeElsewhere(costs):
            engine.charge_elsewhere(costs)
        case HoldElsewhere(held):
            engine.hold_elsewhere(held)
        case GetStats():
            events.append(dataclasses.replace(engine.stats(), resident_bytes=_resident_bytes()))
        case GetQueue():
            events.append(engine.queue_state())
        case GetLive():
            events.append(engine.live_state())
        case GetSteps():
            events.append(engine.steps())
        case ActOnSlot():
            events.append(engine.act_on_slot(command))
        case SaveChats():
            events.append(engine.save_chats())
        case AdoptChat():
            engine.adopt_chat(command)
        case Ping():
            events.append(Pong())
