"""Reads the messages that come through a pipe: on an event loop, or on a thread where there is none.

On a loop nobody else is woken for a message: one system call reads what there is, and it is handled at once. For a
token that matters, as it is read by the process whose cores the next token is computed on.
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

Tell = Callable[..., None]
"""`tell(function, *args)` calls a function where messages are handled, soon."""

_READ_BYTES = 1 << 18

_SIZE = struct.Struct("!i")
_BIG_SIZE = struct.Struct("!Q")


def read(
    conn: Connection,
    on_message: Callable[[Any], None],
    on_end: Callable[[Tell], None],
    loop: asyncio.AbstractEventLoop | None = None,
) -> None:
    """Call `on_message` for each message, then `on_end`, which may take its time: it has a thread of its own.

    Messages are handled on `loop`, the one that runs now, or without one on the thread that reads.
    """
    tell = _at_once if loop is None else functools.partial(_post, loop)
    if loop is not None:
        # Windows' loop watches no pipes.
        with contextlib.suppress(NotImplementedError):
            _LoopReader(loop, conn, on_message, lambda: _on_thread(on_end, tell))
            return
    _on_thread(_read_all, conn, functools.partial(tell, on_message), on_end, tell)


def _on_thread(function: Callable[..., None], *args: Any) -> None:
    threading.Thread(target=function, args=args, name="child-reader", daemon=True).start()


def _at_once(function: Callable[..., None], *args: Any) -> None:
    function(*args)


def _post(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
    # The loop may already be closed when the last words of a child arrive.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *args)


def _read_all(conn: Connection, on_message: Callable[[Any], None], on_end: Callable[[Tell], None], tell: Tell) -> None:
    while True:
        try:
            message = conn.recv()
        except (EOFError, OSError):
            break
        on_message(message)
    on_end(tell)


class _LoopReader:
    """Watches a pipe on `loop`; `on_end` is called once, when the other side has gone."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        conn: Connection,
        on_message: Callable[[Any], None],
        on_end: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._fd = conn.fileno()
        self._frames = Frames()
        self._on_message = on_message
        self._on_end = on_end
        loop.add_reader(self._fd, self._read)
        # uvloop makes what it watches non-blocking, and who writes a long message to it would be stopped in the middle.
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
                # Whoever it was for, the next message is another's.
                logger.exception("a message could not be handled")


def framed(pickled: bytes) -> bytes:
    """A message as multiprocessing's `Connection` writes it on Unix: its length, and its pickle.

    The length is 4 bytes, big-endian, or from 2 GiB on -1 and then 8 bytes.
    """
    size = len(pickled)
    return (_SIZE.pack(size) if size < 1 << 31 else _SIZE.pack(-1) + _BIG_SIZE.pack(size)) + pickled


class Frames:
    """Messages out of bytes that are `framed`."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The messages that are whole now."""
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
