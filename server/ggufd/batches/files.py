"""Files of batches: contents in a folder, and who they belong to in the database. Bounded in size and number."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ggufd.batches.records import StorageFull, StoredFile
from ggufd.errors import InvalidRequest, NotFound, PayloadTooLarge

_PART = ".part"
"""Suffix of a content that is not complete."""

_COLUMNS = "id, owner, purpose, filename, size, created, expires"

_IN_USE = "SELECT id FROM batches WHERE input_file = ? AND status IN ('validating', 'in_progress', 'cancelling')"


@dataclass(frozen=True, slots=True)
class StorageLimits:
    """Limits of batch storage: bytes of all files and results, bytes of one upload, files that one key may have."""

    max_bytes: int = 1 << 30
    max_file_bytes: int = 64 << 20
    max_files: int = 100


class FileWriter:
    """File that is being written; `room` raises where it may not become so long. Nobody sees it before it is kept."""

    def __init__(self, path: Path, room: Callable[[int], None]) -> None:
        self.file_id = path.name
        self.n_bytes = 0
        self._path = path
        self._room = room
        self._part = path.with_name(path.name + _PART)
        self._file: BinaryIO = open(os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")  # noqa: SIM115 - closed by `keep` or `drop`

    def write(self, piece: bytes) -> None:
        """Append. Raises what `room` says of the new length, or OSError."""
        self._room(self.n_bytes + len(piece))
        self._file.write(piece)
        self.n_bytes += len(piece)

    def keep(self) -> None:
        """Make it durable under its name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._part.replace(self._path)

    def drop(self) -> None:
        """Delete what was written."""
        # What a full disk did not take cannot be flushed either.
        with contextlib.suppress(OSError):
            self._file.close()
        self._part.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)


class FileTable:
    """Table of files over `database`, whose contents lie in `folder`. Not thread-safe."""

    def __init__(self, database: sqlite3.Connection, folder: Path, limits: StorageLimits) -> None:
        self._database = database
        self._folder = folder
        self._limits = limits

    # --- contents ---------------------------------------------------------------------------------------------------

    def path(self, file_id: str) -> Path:
        """Where a content lies; ids come from the database, never from a request."""
        return self._folder / file_id

    def used_bytes(self) -> int:
        """Bytes of all files, and of results that are no file yet."""
        (n_bytes,) = self._database.execute(
            "SELECT (SELECT coalesce(sum(size), 0) FROM files) + (SELECT coalesce(sum(result_bytes), 0) FROM batches)"
        ).fetchone()
        return int(n_bytes)

    def check_room(self, n_bytes: int) -> None:
        """Raises StorageFull where so many bytes more would be too many."""
        if self.used_bytes() + n_bytes > self._limits.max_bytes:
            most = self._limits.max_bytes >> 20
            raise StorageFull(
                f"The {most} MiB for files and results of batches (--batch-max-mib) are used up. Delete files that "
                f"nobody needs, or wait until they expire."
            )

    def new_upload(self, owner: str) -> FileWriter:
        """A file to be written by a request of `owner`. Raises InvalidRequest where it has as many as it may."""
        (n_files,) = self._database.execute("SELECT count(*) FROM files WHERE owner = ?", (owner,)).fetchone()
        if n_files >= self._limits.max_files:
            raise InvalidRequest(
                f"You have {n_files} files, and {self._limits.max_files} may be kept (--batch-max-files-per-key). "
                f"Delete some, results of earlier batches among them."
            )
        left = self._limits.max_bytes - self.used_bytes()

        def check(n_bytes: int) -> None:
            if n_bytes > self._limits.max_file_bytes:
                most = self._limits.max_file_bytes >> 20
                raise PayloadTooLarge(f"The file is over the limit of {most} MiB (--batch-max-file-mib). Divide it.")
            if n_bytes > left:
                self.check_room(n_bytes)

        return FileWriter(self.path(_new_id()), check)

    def new_output(self) -> FileWriter:
        """A file of results, which were counted when they came."""
        return FileWriter(self.path(_new_id()), lambda _: None)

    def remove_strays(self) -> None:
        """Delete contents that no row knows: of uploads and results that were cut off."""
        known = {name for (name,) in self._database.execute("SELECT id FROM files")}
        for path in self._folder.iterdir():
            if path.name not in known:
                path.unlink()

    # --- rows -------------------------------------------------------------------------------------------------------

    def insert(self, file: StoredFile) -> None:
        """Add a file, within the caller's transaction."""
        row = (file.file_id, file.owner, file.purpose, file.filename, file.n_bytes, file.created, file.expires)
        self._database.execute(f"INSERT INTO files ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def get(self, owner: str, file_id: str) -> StoredFile:
        """One file of a key. Raises NotFound."""
        row = self._database.execute(
            f"SELECT {_COLUMNS} FROM files WHERE id = ? AND owner = ?", (file_id, owner)
        ).fetchone()
        if row is None:
            raise NotFound(f"There is no file '{file_id[:100]}' of this key. It may have been deleted, or expired.")
        return StoredFile(*row)

    def all_of(self, owner: str) -> list[StoredFile]:
        """Files of a key, the oldest first."""
        rows = self._database.execute(f"SELECT {_COLUMNS} FROM files WHERE owner = ? ORDER BY created, rowid", (owner,))
        return [StoredFile(*row) for row in rows]

    def expired(self, now: int) -> list[StoredFile]:
        """Files whose time is over, and that no open batch reads."""
        rows = self._database.execute(f"SELECT {_COLUMNS} FROM files WHERE expires <= ?", (now,)).fetchall()
        return [file for file in (StoredFile(*row) for row in rows) if not any(self.users(file.file_id))]

    def users(self, file_id: str) -> Iterator[str]:
        """Batches that still read a file."""
        for (batch_id,) in self._database.execute(_IN_USE, (file_id,)):
            yield batch_id

    def delete(self, files: Iterable[StoredFile]) -> None:
        """Delete rows, then contents: one that is left over is removed at the next start."""
        gone = list(files)
        with self._database:
            self._database.executemany("DELETE FROM files WHERE id = ?", [(file.file_id,) for file in gone])
        for file in gone:
            self.path(file.file_id).unlink(missing_ok=True)


def _new_id() -> str:
    return f"file-{uuid.uuid4().hex}"
