"""What runs in the engine's process: drain the inbox, step, send what happened; until the other side is gone.

Imported by the API process too, which only names `main`: nothing heavy is imported before the child calls it.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import logging.handlers
import queue
import time
from multiprocessing.connection import Connection
from typing import Protocol

from server.engine.messages import (
    Abort,
    ActOnSlot,
    Command,
    EmbedRequest,
    EngineConfig,
    EngineRequest,
    Event,
    GetQueue,
    GetStats,
    GetSteps,
    LoadFailed,
    Loading,
    LogLine,
    Ping,
    Pong,
    QueueState,
    Shutdown,
    SlotDone,
    Stats,
    Steps,
)
from server.errors import ModelError, ModelTooLarge


class Engine(Protocol):
    """What the main loop drives: `engine.Engine`, or one that makes vectors only."""

    @property
    def has_work(self) -> bool: ...
    @property
    def is_preparing(self) -> bool: ...
    def add(self, request: EngineRequest | EmbedRequest) -> None: ...
    def abort(self, request_id: int) -> None: ...
    def step(self) -> list[Event]: ...
    def keep_house(self) -> bool: ...
    def stats(self) -> Stats: ...
    def queue_state(self) -> QueueState: ...
    def steps(self) -> Steps: ...
    def note_sent(self, seconds: float) -> None: ...
    def act_on_slot(self, command: ActOnSlot) -> SlotDone: ...
    def close(self, timeout_s: float) -> None: ...


_CLOSE_S = 3.0
"""What is to be kept on disk must be there by then."""

_PREPARE_POLL_S = 0.002
"""How often the loop looks whether a grammar is compiled, when that is all there is to wait for."""


def main(conn: Connection, config: EngineConfig) -> None:
    """Load the model, say `Ready` or `LoadFailed`, then serve until `Shutdown` or the end of the connection."""
    from server.llama import library

    def report(event: Loading) -> None:
        conn.send([event])

    try:
        library.load()
        from server.engine.loader import load

        loaded = load(config, report)
    except ModelError as error:
        conn.send([LoadFailed(error.message, isinstance(error, ModelTooLarge))])
        return
    # What was loaded stays, and need not be looked through between two steps.
    gc.freeze()
    conn.send([loaded.ready])
    log: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    logging.getLogger("server").addHandler(logging.handlers.QueueHandler(log))
    serve(conn, loaded.engine, log)


def serve(conn: Connection, engine: Engine, log: queue.SimpleQueue[logging.LogRecord] | None = None) -> None:
    """The main loop. Every message out is a list of events: at most one message a step.

    What this process writes into its `log`, on whatever thread, goes out with them.
    """
    while True:
        events: list[Event] = _lines(log)
        is_tidying = not engine.has_work and not conn.poll(0) and engine.keep_house()
        while conn.poll(0 if events or is_tidying else _patience_s(engine)):
            command: Command = conn.recv()
            if isinstance(command, Shutdown):
                engine.close(_CLOSE_S)
                return
            _obey(engine, command, events)
        if engine.has_work:
            events += engine.step()
        if events:
            start_s = time.perf_counter()
            conn.send(events)
            engine.note_sent(time.perf_counter() - start_s)


def _lines(log: queue.SimpleQueue[logging.LogRecord] | None) -> list[Event]:
    lines: list[Event] = []
    while log is not None and not log.empty():
        record = log.get_nowait()
        lines.append(LogLine(record.levelno, record.getMessage(), record.name))
    return lines


def _patience_s(engine: Engine) -> float | None:
    """How long the next command may be waited for: for ever with nothing to do."""
    if not engine.has_work:
        return None
    return _PREPARE_POLL_S if engine.is_preparing else 0


def _resident_bytes() -> int:
    """Memory of this process that is in RAM, the mapped model included."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def _obey(engine: Engine, command: Command, events: list[Event]) -> None:
    match command:
        case EngineRequest() | EmbedRequest():
            engine.add(command)
        case Abort(request_id):
            engine.abort(request_id)
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
