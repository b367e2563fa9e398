"""Non-blocking sending end of a message pipe: written directly while the pipe has room, the rest by a thread.

A thread woken for each message would start only when the caller yields the GIL: one to five milliseconds later, which
is as long as a small model takes for a token.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import socket
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from ggufd.processes.receiver import frame


class Sender:
    """Sender over `conn`, in order, from any thread; messages are dropped silently once the other side has closed."""

    def __init__(self, conn: Connection, name: str) -> None:
        self._conn = conn
        # Windows' pipes are not sockets, and cannot be written without blocking.
        self._socket = None if sys.platform == "win32" else socket.socket(fileno=os.dup(conn.fileno()))
        self._lock = threading.Lock()
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._n_waiting = 0
        self._thread = threading.Thread(target=self._send_waiting, name=f"{name}-writer", daemon=True)
        # Started now, because `close` joins it, which may come at once.
        self._thread.start()

    def send(self, message: Any) -> None:
        """Send a message; returns at once."""
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with self._lock:
            if self._socket is not None:
                data = frame(data)
                if not self._n_waiting:
                    data = data[_send_now(self._socket, data) :]
            if data:
                self._n_waiting += 1
                self._waiting.put(data)

    def close(self) -> None:
        """Stop sending, after the other side has closed. May block for a moment."""
        self._waiting.put(None)
        self._thread.join()
        with self._lock:
            # Later messages are queued and never sent.
            self._n_waiting += 1
            if self._socket is not None:
                self._socket.close()

    def _send_waiting(self) -> None:
        while (data := self._waiting.get()) is not None:
            with contextlib.suppress(OSError):
                if self._socket is None:
                    self._conn.send_bytes(data)
                else:
                    self._socket.sendall(data)
            with self._lock:
                self._n_waiting -= 1


def _send_now(to: socket.socket, data: bytes) -> int:
    """Bytes written without blocking; all of them if the other side has closed."""
    try:
        return to.send(data, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return 0
    except OSError:
        return len(data)
