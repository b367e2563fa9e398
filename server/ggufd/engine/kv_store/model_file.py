"""Identity of a file by its contents: the same for a copy and after `touch`, another for other weights.

Imports nothing of llama.cpp, so that any process may ask.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from ggufd.llama.gguf import gguf_header

_HEAD_BYTES = 8 << 20
"""Tokens, chat template and the list of tensors lie within it."""

_PIECES = 1024
_PIECE_BYTES = 4096

_Stamp = tuple[int, int]
"""Size in bytes and time of the last change in nanoseconds: equal for a file that nobody wrote to. Not the inode, which
some network file systems change at each look."""


def contents(path: Path) -> str:
    """Digest of a file, 32 hex digits. Raises OSError.

    Of a large file the beginning and samples of its weights are read: all of it would take as long as loading it.
    """
    digest = hashlib.blake2b(digest_size=16)
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_HEAD_BYTES))
        for piece in range(_PIECES if size > _HEAD_BYTES else 0):
            # The last one is the file's end.
            file.seek((size - _PIECE_BYTES) * piece // (_PIECES - 1))
            digest.update(file.read(_PIECE_BYTES))
    return digest.hexdigest()


def model_contents(path: str) -> str:
    """Digests of all files of the model that `path` is (a part of). Raises OSError."""
    return "".join(contents(part) for part in _parts(path))


class FirstLoaded:
    """Change detection for the model file that was loaded first; with another date alone, or as a copy, it is the same.

    `note` and `is_replaced` read files: call them on a thread.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._stamps = self._look()
        self._contents: str | None = None

    def note(self) -> None:
        """Remember the digest; call it once the model is loaded, while the page cache has the file."""
        with suppress(OSError):
            read = model_contents(self._path)
            if self._look() == self._stamps:
                self._contents = read

    def is_replaced(self) -> bool:
        """Whether another model lies there now. A missing file is not one: the loader tells of it."""
        stamps = self._look()
        if None in (stamps, self._stamps) or stamps == self._stamps:
            return False
        try:
            if model_contents(self._path) != self._contents:
                return True
        except OSError:
            return False
        self._stamps = stamps
        return False

    def _look(self) -> list[_Stamp] | None:
        try:
            found = [os.stat(part) for part in _parts(self._path)]
        except OSError:
            return None
        return [(one.st_size, one.st_mtime_ns) for one in found]


def _parts(path: str) -> list[Path]:
    return gguf_header.parts_of(Path(path).expanduser())
