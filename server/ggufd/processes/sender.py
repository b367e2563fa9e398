"""Sends messages through a pipe and never waits: at once where the pipe has room, the rest by a thread.

A thread that is woken for each message begins when the one that asks has no more to do: a millisecond later, or five
where it has much, which is as long as a small model takes for a token.
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

from ggufd.processes.receiver import framed


class Sender:
    """Sends through `conn`, in order, from any thread; silently into nothing when the other side is gone."""

    def __init__(self, conn: Connection, name: str) -> None:
        self._conn = conn
        # Windows' pipes are no sockets, and cannot be asked for room.
        self._socket = None if sys.platform == "win32" else socket.socket(fileno=os.dup(conn.fileno()))
        self._lock = threading.Lock()
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._n_waiting = 0
        self._thread = threading.Thread(target=self._send_waiting, name=f"{name}-writer", daemon=True)
        # It is joined when the other side goes, which may be at once.
        self._thread.start()

    def send(self, message: Any) -> None:
        """Send a message; returns at once."""
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with self._lock:
            if self._socket is not None:
                data = framed(data)
                if not self._n_waiting:
                    data = data[_sent_at_once(self._socket, data) :]
            if data:
                self._n_waiting += 1
                self._waiting.put(data)

    def close(self) -> None:
        """The other side is gone: nothing is sent any more. May wait a moment."""
        self._waiting.put(None)
        self._thread.join()
        with self._lock:
            # Whoever sends from now on leaves it to nobody.
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


def _sent_at_once(to: socket.socket, data: bytes) -> int:
    """How many bytes there was room for. To one who is gone everything goes."""
    try:
        return to.send(data, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return 0
    except OSError:
        return len(data)
