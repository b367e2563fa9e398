"""Capture of llama.cpp's log: line by line to a function instead of the terminal."""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import llama_cpp
from llama_cpp._logger import llama_log_callback

Sink = Callable[[int, str], None]
"""Gets `logging`'s level and one line without its end."""

# ggml_log_level: 1 debug, 2 info, 3 warn, 4 error, 5 continue the line before.
_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
_CONTINUE = 5


class LogCapture:
    """Log callback of the whole process, which passes lines to `sink` for as long as this object lives.

    llama.cpp writes lines in pieces; they are joined here. The callback must stay referenced: C calls it at any time.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._level = logging.INFO
        self._line = ""
        self._callback = llama_cpp.llama_log_callback(self._receive)

    def install(self) -> None:
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _receive(self, level: int, text: bytes, _user_data: object) -> None:
        if level != _CONTINUE:
            self._level = _LEVELS.get(level, logging.INFO)
        self._line += text.decode("utf-8", "replace")
        *complete, self._line = self._line.split("\n")
        for line in complete:
            if line.strip(" ."):
                self._sink(self._level, line)


@contextmanager
def problems_only() -> Iterator[None]:
    """Warnings and errors on stderr and nothing else, where a command only asks what there is."""
    capture = LogCapture(_print_problem)
    capture.install()
    try:
        yield
    finally:
        # The binding's own, which stays for as long as the process does.
        llama_cpp.llama_log_set(llama_log_callback, ctypes.c_void_p(0))


def _print_problem(level: int, line: str) -> None:
    if level >= logging.WARNING:
        print(line, file=sys.stderr)
