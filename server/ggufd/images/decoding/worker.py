"""Main of the decoding process: decodes one file after another until the pipe closes.

Imported by the API process for its messages, so nothing here imports Pillow before `main` runs.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from ggufd.errors import InvalidRequest
from ggufd.images.decoding.limits import DecodeLimits
from ggufd.images.pixels import Pixels

NAME = "ggufd-decoder"

_NICE = 5
"""Decoding waits for nobody, and streams do: they have the processor first."""

_PIXEL_BYTES = 10
"""What a pixel takes: 4 bytes of the image and 4 of a copy, of WebP up to 18 (it may have half as many)."""

_SPARE_BYTES = 96 << 20
"""File, pickles and pixels on their way."""


@dataclass(frozen=True, slots=True)
class DecoderReady:
    """First message: files are decoded from now on."""


@dataclass(frozen=True, slots=True)
class FileRefused:
    """Reason why a file is not taken."""

    message: str


Outcome = Pixels | FileRefused


def main(conn: Connection, limits: DecodeLimits) -> None:
    """Main of the child."""
    with contextlib.suppress(OSError, AttributeError):
        os.nice(_NICE)
    # Imported now, so that the time is not the first file's.
    from PIL import Image

    from ggufd.images.decoding import pillow  # noqa: F401

    # The formats that are taken, and none of the forty others.
    Image.preinit()
    _limit_memory(limits)
    conn.send(DecoderReady())
    with contextlib.suppress(EOFError, OSError):
        while True:
            conn.send(outcome(conn.recv(), limits))


def outcome(data: bytes, limits: DecodeLimits) -> Outcome:
    """Pixels of one file, or why it is not taken; only C can end the process."""
    from ggufd.images.decoding import pillow

    try:
        return pillow.decode(data, limits)
    except InvalidRequest as error:
        return FileRefused(error.message)
    except MemoryError:
        return FileRefused("Decoding the image needs more memory than it may use. Send it smaller.")


def _limit_memory(limits: DecodeLimits) -> None:
    """Limit what the process takes beyond what it has now, where the system can."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        used = re.search(r"^VmData:\s+(\d+) kB", status, re.MULTILINE)
        if used is not None:
            limit = int(used[1]) * 1024 + limits.max_pixels * _PIXEL_BYTES + _SPARE_BYTES
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
