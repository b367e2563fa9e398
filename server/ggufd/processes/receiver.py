"""Receiving end of a message pipe, on an event loop, or on a thread where there is none.

On a loop no other thread is woken for a message: one system call reads what there is, and it is handled at once. That
matters per token, because the reading process shares its cores with the computation of the next token.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import pickle
import struct
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

logger = logging.getLogger(__name__)

Dispatch = Callable[..., None]
"""`dispatch(function, *args)` schedules a call on the loop or thread that handles messages."""

_READ_BYTES = 1 << 18

_SIZE = struct.Struct("!i")
_BIG_SIZE = struct.Struct("!Q")


def receive(
    conn: Connection,
    on_message: Callable[[Any], None],
    on_end: Callable[[Dispatch], None],
    loop: asyncio.AbstractEventLoop | None = None,
) -> None:
    """Call `on_message` for each message, then `on_end` on a thread of its own, where it may block.

    Messages are handled on `loop`, the running one, or without one on the reading thread.
    """
    dispatch = _call_now if loop is None else functools.partial(_call_on_loop, loop)
    if loop is not None:
        # Windows' loop cannot watch pipes.
        with contextlib.suppress(NotImplementedError):
            _LoopReader(loop, conn, on_message, lambda: _on_thread(on_end, dispatch))
            return
    _on_thread(_read_all, conn, functools.partial(dispatch, on_message), on_end, dispatch)


def _on_thread(function: Callable[..., None], *args: Any) -> None:
    threading.Thread(target=function, args=args, name="child-reader", daemon=True).start()


def _call_now(function: Callable[..., None], *args: Any) -> None:
    function(*args)


def _call_on_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
    # The loop may already be closed when the last messages of a child arrive.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *args)


def _read_all(
    conn: Connection, on_message: Callable[[Any], None], on_end: Callable[[Dispatch], None], dispatch: Dispatch
) -> None:
    while True:
        try:
            message = conn.recv()
        except (EOFError, OSError):
            break
        on_message(message)
    on_end(dispatch)


class _LoopReader:
    """Reader of a pipe on `loop`; calls `on_end` once, when the other side has closed."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        conn: Connection,
        on_message: Callable[[Any], None],
        on_end: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._fd = conn.fileno()
        self._frames = FrameDecoder()
        self._on_message = on_message
        self._on_end = on_end
        loop.add_reader(self._fd, self._read)
        # uvloop makes the pipe non-blocking, and a writer of a long message would fail in the middle.
        os.set_blocking(self._fd, True)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _READ_BYTES)
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._fd)
            self._on_end()
            return
        for message in self._frames.feed(data):
            try:
                self._on_message(message)
            except Exception:
                # The next message may be for another request.
                logger.exception("a message could not be handled")


def frame(pickled: bytes) -> bytes:
    """Message in the format of multiprocessing's `Connection` on Unix: its length, then its pickle.

    The length is 4 bytes, big-endian, or from 2 GiB on -1 and then 8 bytes.
    """
    size = len(pickled)
    return (_SIZE.pack(size) if size < 1 << 31 else _SIZE.pack(-1) + _BIG_SIZE.pack(size)) + pickled


class FrameDecoder:
    """Incremental decoder of messages that `frame` encoded."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Messages that `data` completes."""
        self._bytes += data
        while (pickled := self._next()) is not None:
            yield pickle.loads(pickled)

    def _next(self) -> bytes | None:
        start = _SIZE.size
        if len(self._bytes) < start:
            return None
        (size,) = _SIZE.unpack_from(self._bytes)
        if size < 0:
            start += _BIG_SIZE.size
            if len(self._bytes) < start:
                return None
            (size,) = _BIG_SIZE.unpack_from(self._bytes, _SIZE.size)
        end = start + size
        if len(self._bytes) < end:
            return None
        pickled = bytes(self._bytes[start:end])
        del self._bytes[:end]
        return pickled
