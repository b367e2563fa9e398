"""Main of the text process: loads the vocabulary, answers calls one after another until the pipe closes.

Imported by the API process for its messages, so nothing here imports llama_cpp before `main` runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import os
import pickle
import re
import threading
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufd.chat.prompt import TextInfo, TextParams
from ggufd.errors import GgufdError, InvalidRequest, StartupError

if TYPE_CHECKING:
    from ggufd.chat.process.text import TextModel

NAME = "ggufd-text"

# Some tokenizers of llama.cpp recurse once a character: 8 MB of stack end at 50,000 identical ones. The pages are
# only taken when they are touched.
_STACK_BYTES = 512 << 20

_MEMORY_BYTES = 2 << 30
"""What the vocabulary and the calls may take together: a vocabulary of 262k tokens takes a tenth of it."""

_NO_DEVICES = {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1", "GGML_VK_VISIBLE_DEVICES": ""}

_KEPT_LOG_LINES = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """Call of a method of `TextModel` by name."""

    call_id: int
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class CallResult:
    """Result of a call."""

    call_id: int
    result: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """Exception of a call, flattened: `errors.from_code` makes it again."""

    call_id: int
    code: str
    message: str
    param: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Started:
    """First message: calls are answered from now on."""

    info: TextInfo


@dataclasses.dataclass(frozen=True, slots=True)
class StartFailed:
    """First and last message: this model cannot be used."""

    message: str


Reply = CallResult | Refusal | Started | StartFailed


def prepare() -> None:
    """Import what `main` will need; that the library cannot be loaded is reported by `main`."""
    gc.disable()
    os.environ.update(_NO_DEVICES)
    from ggufd.llama import library

    with contextlib.suppress(StartupError):
        library.load()
        import ggufd.chat.process.text  # noqa: F401


def main(conn: Connection, params: TextParams) -> None:
    """Main of the child. Works on a thread, because only a new thread can have a larger stack."""
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=_serve, args=(conn, params), name="text")
    thread.start()
    thread.join()


def _serve(conn: Connection, params: TextParams) -> None:
    gc.disable()
    # A GPU build would else make a context on each device, only to ask for its memory.
    os.environ.update(_NO_DEVICES)
    # Before anything of the file is read: Jinja computes constants of a template while it compiles it.
    _limit_resources()
    from ggufd.llama import library

    try:
        library.load()
    except StartupError as error:
        conn.send(StartFailed(error.message))
        return
    from ggufd.llama.log import LogCapture

    errors: deque[str] = deque(maxlen=_KEPT_LOG_LINES)

    def keep(level: int, line: str) -> None:
        # What a backend says of the devices that were hidden from it is no reason of anything.
        if level >= logging.ERROR and not line.startswith("ggml_"):
            errors.append(line.strip())

    capture = LogCapture(keep)  # referenced until the end: C calls it
    capture.install()
    model = _load(conn, params, errors)
    if model is None:
        return
    gc.freeze()
    gc.enable()
    conn.send(Started(model.info))
    with contextlib.suppress(EOFError, OSError):
        while True:
            conn.send(answer(model, pickle.loads(conn.recv())))


def _load(conn: Connection, params: TextParams, errors: deque[str]) -> TextModel | None:
    from ggufd.chat.process.text import load

    try:
        return load(params)
    except StartupError as error:
        reason = "; ".join(errors)
        conn.send(StartFailed(f"{error.message} ({reason})" if reason else error.message))
        return None


def answer(model: TextModel, call: Call) -> CallResult | Refusal:
    """Outcome of one call. Whatever it raises becomes a refusal; only C can end the process."""
    try:
        return CallResult(call.call_id, getattr(model, call.method)(*call.args, **call.kwargs))
    except GgufdError as error:
        return Refusal(call.call_id, error.code, error.message, error.param)
    except MemoryError:
        return _refusal(call, "The text needs more memory than it may use.")
    except RecursionError:
        return _refusal(call, "The request is nested too deeply.")
    except Exception as error:
        return Refusal(call.call_id, "internal_error", f"{type(error).__name__}: {error}", None)


def _refusal(call: Call, message: str) -> Refusal:
    return Refusal(call.call_id, InvalidRequest.code, message, None)


def _limit_resources() -> None:
    """Limit the process's memory: a hostile template cannot take the machine's."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        used = re.search(r"^VmData:\s+(\d+) kB", status, re.MULTILINE)
        if used is not None:
            limit = int(used[1]) * 1024 + _MEMORY_BYTES
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
