"""Main of the encoder process: loads the vocabulary and the projector, encodes one image after another.

Orders are received on a thread of their own, so that sizes are answered, and jobs stopped, while an image is encoded.
Imported by the server's process for its name, so nothing here imports llama_cpp before `main` runs.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import queue
import shutil
import threading
import time
from collections import deque
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from ggufd.errors import EngineFailure, GgufdError, InvalidRequest, StartupError
from ggufd.images.encoder.messages import (
    Cancel,
    Encode,
    Encoded,
    EncoderOrder,
    EncoderParams,
    EncoderReply,
    EncoderStarted,
    EncoderStartFailed,
    JobFailed,
    Layout,
    Measure,
    Measured,
)
from ggufd.placement import host
from ggufd.processes.prestarted import before_exit_with_parent, end_with_parent

if TYPE_CHECKING:
    from ggufd.llama.projector.projector import Part, Projector

NAME = "ggufd-encoder"

_NO_DEVICES = {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1", "GGML_VK_VISIBLE_DEVICES": ""}
_KEPT_LOG_LINES = 3

_LOOKS = 20_000
"""See `library.load`. Between its operations there is less to wait for than between steps: with 70,000 an image and the
streams beside it took a twelfth longer. With none an image on an idle machine took 1.3 s, not 0.95.
"""


def main(conn: Connection, params: EncoderParams) -> None:
    """Main of the child."""
    gc.disable()
    if params.temporary:
        before_exit_with_parent(lambda: shutil.rmtree(params.temporary, ignore_errors=True))
    if params.niceness and hasattr(os, "nice"):
        os.nice(params.niceness)
    if not params.projector.uses_gpu:
        # A GPU build would else make a context on each device.
        os.environ.update(_NO_DEVICES)
    from ggufd.llama import library

    errors: deque[str] = deque(maxlen=_KEPT_LOG_LINES)
    jobs = Jobs()
    try:
        host.bind_to(params.cpus)
        library.load(_LOOKS)
        capture = _capture_log(errors)  # referenced until the end: C calls it
        projector = _load(params, jobs)
    except StartupError as error:
        reason = "; ".join(errors)
        conn.send(EncoderStartFailed(f"{error.message} ({reason})" if reason else error.message))
        return
    gc.freeze()
    gc.enable()
    Worker(conn, projector, jobs).run()
    # Only a parent that has ended closes the pipe.
    end_with_parent()
    del capture


def _capture_log(errors: deque[str]) -> Any:
    from ggufd.llama.projector.binding import ProjectorLog

    def keep(level: int, line: str) -> None:
        if level >= logging.ERROR:
            errors.append(line.strip())

    capture = ProjectorLog(keep)
    capture.install()
    return capture


def _load(params: EncoderParams, jobs: Jobs) -> Projector:
    from ggufd.llama.model.model import GgufModel
    from ggufd.llama.projector.projector import Projector

    return Projector(GgufModel(params.model_path), params.projector, jobs.may_go_on)


class Jobs:
    """Encodings that wait, and the one that is worked on; used by the receiving and the encoding thread."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Encode | None] = queue.SimpleQueue()
        self._cancelled: set[int] = set()
        self._current: int | None = None
        self._has_ended = False

    def add(self, job: Encode) -> None:
        self._waiting.put(job)

    def cancel(self, job_id: int) -> None:
        self._cancelled.add(job_id)

    def end(self) -> None:
        """Nobody waits for an answer any more."""
        self._has_ended = True
        self._waiting.put(None)

    def take(self) -> Encode | None:
        """The next one, when it comes; None at the end."""
        job = self._waiting.get()
        self._current = None if job is None else job.job_id
        return job

    def finish(self, job: Encode) -> None:
        self._cancelled.discard(job.job_id)

    def may_go_on(self) -> bool:
        """Whether somebody still waits for the current one."""
        return not self._has_ended and self._current not in self._cancelled


class Worker:
    """Worker on the jobs that come through a pipe, until that closes."""

    def __init__(self, conn: Connection, projector: Projector, jobs: Jobs) -> None:
        self._conn = conn
        self._projector = projector
        self._jobs = jobs
        self._sending = threading.Lock()

    def run(self) -> None:
        threading.Thread(target=self._receive, name="orders", daemon=True).start()
        self._send(EncoderStarted())
        while (job := self._jobs.take()) is not None:
            self._send(self._answer(job))
            self._jobs.finish(job)

    def _receive(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                order: EncoderOrder = self._conn.recv()
                match order:
                    case Encode():
                        self._jobs.add(order)
                    case Cancel(job_id):
                        self._jobs.cancel(job_id)
                    case Measure():
                        self._send(self._measure(order))
        self._jobs.end()

    def _send(self, reply: EncoderReply) -> None:
        with self._sending, contextlib.suppress(OSError):
            self._conn.send(reply)

    def _measure(self, order: Measure) -> Measured | JobFailed:
        try:
            return Measured(order.job_id, self._projector.layout(order.width, order.height))
        except EngineFailure as error:
            # Only the size of the image can be wrong.
            return JobFailed(order.job_id, InvalidRequest.code, f"{error.message[:1].upper()}{error.message[1:]}.")

    def _answer(self, job: Encode) -> Encoded | JobFailed:
        from ggufd.llama.projector.projector import EncodingStopped

        begun_s = time.monotonic()
        try:
            if not self._jobs.may_go_on():
                raise EncodingStopped
            layout = _write(self._projector.encode(job.width, job.height, job.data), job.paths)
            return Encoded(job.job_id, layout, time.monotonic() - begun_s)
        except EncodingStopped:
            return JobFailed(job.job_id, EngineFailure.code, "The image was given up.")
        except GgufdError as error:
            return JobFailed(job.job_id, error.code, f"The image could not be encoded: {error.message}.")
        except (OSError, MemoryError) as error:
            return JobFailed(job.job_id, EngineFailure.code, f"The image's rows could not be kept: {error}.")


def _write(parts: tuple[Part, ...], paths: tuple[str, ...]) -> Layout:
    """Write the rows of each tile to its file; the layout of what was written."""
    tiles = [part for part in parts if not isinstance(part, tuple)]
    if len(tiles) != len(paths):
        raise EngineFailure(f"it came out as {len(tiles)} tiles, {len(paths)} were expected")
    for rows, path in zip(tiles, paths, strict=True):
        part = f"{path}.part"
        with open(part, "wb", opener=_private) as file:
            file.write(rows.data)
        os.replace(part, path)
    return tuple(part if isinstance(part, tuple) else len(part) for part in parts)


def _private(path: str, flags: int) -> int:
    """Opener of a file that nobody else may read."""
    return os.open(path, flags, 0o600)
