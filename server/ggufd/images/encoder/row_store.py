"""Store of rows: files that were encoded once, least recently used first to go, within a number of bytes.

A file is found by the cache scope of who asked for it and the digest of what it is, so nobody learns by the time it
takes what somebody else has sent. What was used within the last seconds stays: the engine may not have opened it yet.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MAX_BYTES = 512 << 20

_KEPT_S = 60.0
"""So long a file stays after it was asked for, though others need its room."""

_SUFFIX = ".rows"
_NAME = re.compile(r"[0-9a-f]{64}\.rows(\.part)?", re.ASCII)


@dataclass(slots=True)
class _Entry:
    n_bytes: int
    used_s: float


class RowStore:
    """Store in `folder`, which outlives the server, or without one in a temporary folder, which does not.

    Raises OSError where no folder can be made.
    """

    def __init__(
        self, folder: Path | None = None, max_bytes: int = MAX_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._is_temporary = folder is None
        self._folder = folder or Path(tempfile.mkdtemp(prefix="ggufd-images-"))
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: dict[str, _Entry] = self._scan()
        """By the name of the file, least recently used first."""
        self._make_room()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def temporary(self) -> str:
        """Folder that must not outlive the server; "" where it may."""
        return str(self._folder) if self._is_temporary else ""

    @property
    def n_bytes(self) -> int:
        return sum(entry.n_bytes for entry in self._entries.values())

    def path(self, scope: str, digest: str) -> Path:
        """Path of the file of some rows, whether it is there or not."""
        name = hashlib.sha256(digest.encode() + scope.encode())
        return self._folder / f"{name.hexdigest()}{_SUFFIX}"

    def find(self, scope: str, digest: str, n_bytes: int) -> Path | None:
        """Path of a file that is there and has so many bytes, which counts as a use; None for any other."""
        path = self.path(scope, digest)
        try:
            found = path.stat().st_size
        except OSError:
            self._entries.pop(path.name, None)
            return None
        if found != n_bytes:
            self._drop(path.name)
            return None
        self._use(path, n_bytes)
        return path

    def add(self, scope: str, digest: str) -> Path:
        """Take in a file that was written to `path`. Raises OSError where it is gone."""
        path = self.path(scope, digest)
        self._use(path, path.stat().st_size)
        self._make_room()
        return path

    def close(self) -> None:
        """Delete a temporary folder."""
        if self._is_temporary:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _use(self, path: Path, n_bytes: int) -> None:
        self._entries.pop(path.name, None)
        self._entries[path.name] = _Entry(n_bytes, self._clock())
        # For the next server: it finds them by their times.
        with contextlib.suppress(OSError):
            os.utime(path)

    def _make_room(self) -> None:
        excess = self.n_bytes - self._max_bytes
        keep_since_s = self._clock() - _KEPT_S
        for name, entry in list(self._entries.items()):
            if excess <= 0 or entry.used_s > keep_since_s:
                return
            excess -= entry.n_bytes
            self._drop(name)

    def _drop(self, name: str) -> None:
        self._entries.pop(name, None)
        with contextlib.suppress(OSError):
            (self._folder / name).unlink()

    def _scan(self) -> dict[str, _Entry]:
        """Files that an earlier server left, the oldest first; what it did not finish is deleted."""
        found = []
        for path in self._folder.iterdir():
            if not _NAME.fullmatch(path.name):
                continue
            if path.suffix != _SUFFIX:
                path.unlink(missing_ok=True)
                continue
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime, path.name, status.st_size))
        return {name: _Entry(n_bytes, -_KEPT_S * 2) for _, name, n_bytes in sorted(found)}
