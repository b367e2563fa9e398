"""Store of batches: files, batches and lines of every key, in one folder.

Each belongs to the key that made it and does not exist for others. What is promised of a line:

    waiting    until its result is stored, whatever ends meanwhile: it is computed again then
    told       its result is stored, once, and counted in the same transaction

Every call waits on a thread: the disk may be slow. Knows neither how a line is computed nor what it says.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import uuid
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from ggufd.batches.database import connect, prepare_folder
from ggufd.batches.files import FileTable, FileWriter, StorageLimits
from ggufd.batches.lines import LineTable, TellLost
from ggufd.batches.records import (
    BatchLine,
    BatchOrder,
    BatchRecord,
    BatchStatus,
    LineFault,
    LineResult,
    StoredFile,
    unix_now,
)
from ggufd.batches.rows import BatchTable
from ggufd.errors import InvalidRequest, Unavailable

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_BROKEN_S = 30
"""Retry-After of a database that failed; an assumption, for only a person can know."""


class BatchStore:
    """Store in `folder`. Files and ended batches are kept for `keep_s` seconds; Unix times come from `now`.

    Raises ConfigError when the folder cannot be used, or another server uses it.
    """

    def __init__(self, folder: Path, limits: StorageLimits, *, keep_s: int, now: Callable[[], int] = unix_now) -> None:
        prepare_folder(folder)
        self.keep_s = keep_s
        self.now = now
        self._lock = threading.RLock()
        self._database = connect(folder)
        self.files = FileTable(self._database, folder / "files", limits)
        self.lines = LineTable(self._database)
        self.batches = BatchTable(self._database)
        self.files.remove_strays()
        self._finalizer = weakref.finalize(self, self._database.close)

    def close(self) -> None:
        """Close the database. Happens by itself when the store is given up, or the program ends."""
        with self._lock:
            self._finalizer()

    async def run(self, work: Callable[Concatenate[BatchStore, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The result of a method below, or of a table's, called on a thread with the database to itself.

        Raises Unavailable when the database cannot do it.
        """

        def locked() -> R:
            with self._lock:
                try:
                    return work(self, *args, **kwargs)
                except sqlite3.Error as error:
                    raise _broken(error) from None

        return await asyncio.to_thread(locked)

    # --- files ------------------------------------------------------------------------------------------------------

    def new_upload(self, owner: str) -> FileWriter:
        """A file to be written. Raises InvalidRequest where the key has as many as it may."""
        return self.files.new_upload(owner)

    def keep_upload(self, writer: FileWriter, owner: str, filename: str, keep_s: int) -> StoredFile:
        """Keep an upload that is complete."""
        created = self.now()
        file = StoredFile(writer.file_id, owner, "batch", filename, writer.n_bytes, created, created + keep_s)
        writer.keep()
        with self._database:
            self.files.insert(file)
        return file

    def content(self, owner: str, file_id: str) -> tuple[StoredFile, Path]:
        """A file, and where its content lies. Raises NotFound."""
        file = self.files.get(owner, file_id)
        return file, self.files.path(file.file_id)

    def delete_file(self, owner: str, file_id: str) -> None:
        """Delete a file. Raises NotFound, or InvalidRequest while a batch reads it."""
        file = self.files.get(owner, file_id)
        user = next(self.files.users(file.file_id), None)
        if user is not None:
            raise InvalidRequest(f"The file '{file.file_id}' is being computed by '{user}'. Cancel that first.")
        self.files.delete([file])

    # --- batches ----------------------------------------------------------------------------------------------------

    def create(self, owner: str, order: BatchOrder) -> BatchRecord:
        """A new batch. Raises NotFound for its file."""
        file = self.files.get(owner, order.input_file)
        if file.purpose != "batch":
            raise InvalidRequest(
                f"'input_file_id': expected a file of purpose 'batch', got one of '{file.purpose}'.",
                param="input_file_id",
            )
        now = self.now()
        record = BatchRecord(
            f"batch_{uuid.uuid4().hex}", owner, order, BatchStatus.VALIDATING, now, now + order.window_s
        )
        with self._database:
            self.batches.insert(record)
        return record

    def cancel(self, owner: str, batch_id: str) -> BatchRecord:
        """Ask for the end of a batch. Raises InvalidRequest where it has ended already."""
        record = self.batches.get(owner, batch_id)
        if record.status is BatchStatus.CANCELLING:
            return record
        if record.status not in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
            raise InvalidRequest(f"The batch '{record.batch_id}' cannot be cancelled: it is {record.status.value}.")
        return self.move(record, BatchStatus.CANCELLING, ends_as=BatchStatus.CANCELLED)

    def delete(self, owner: str, batch_id: str) -> None:
        """Forget a batch that has ended; its files stay. Raises InvalidRequest while it is open."""
        record = self.batches.get(owner, batch_id)
        if record.status.is_open:
            raise InvalidRequest(f"The batch '{record.batch_id}' is {record.status.value}. Cancel it first.")
        with self._database:
            self.batches.delete(record.batch_id)

    def move(self, record: BatchRecord, status: BatchStatus, *, ends_as: BatchStatus | None = None) -> BatchRecord:
        """Bring a batch to a status; one that was cancelled meanwhile stays so."""
        with self._database:
            return self.batches.move(record, status, self.now(), ends_as)

    def refuse(self, record: BatchRecord, faults: Sequence[LineFault]) -> None:
        """End a batch whose file cannot be computed."""
        with self._database:
            if self.batches.move(record, BatchStatus.FAILED, self.now(), None).status is BatchStatus.FAILED:
                self.batches.set_faults(record.batch_id, faults)

    def begin(self, record: BatchRecord, lines: Iterable[BatchLine]) -> None:
        """Take in the lines of a batch whose file is valid; from now on they wait."""
        with self._database:
            moved = self.batches.move(record, BatchStatus.IN_PROGRESS, self.now(), None)
            if moved.status is BatchStatus.IN_PROGRESS:
                self.batches.set_total(record.batch_id, self.lines.insert(record.batch_id, lines))

    # --- lines ------------------------------------------------------------------------------------------------------

    def input_path(self, record: BatchRecord) -> Path:
        """Where the lines of a batch lie."""
        return self.files.path(record.order.input_file)

    def read_line(self, record: BatchRecord, line: BatchLine) -> bytes:
        """What a line says. Raises OSError."""
        with self.input_path(record).open("rb") as content:
            content.seek(line.offset)
            return content.read(line.n_bytes)

    def note_attempt(self, record: BatchRecord, line: BatchLine) -> int:
        """Count a failed attempt that is worth another; returns how many there were."""
        with self._database:
            return self.lines.note_attempt(record.batch_id, line)

    def tell(self, record: BatchRecord, line: BatchLine, result: LineResult) -> None:
        """Store the result of a line. Raises StorageFull, or sqlite3.Error where the disk does not take it."""
        n_bytes = len(result.text.encode()) + 1
        self.files.check_room(n_bytes)
        with self._database:
            if self.lines.tell(record.batch_id, line, result):
                self.batches.count(record.batch_id, is_ok=result.is_ok, n_bytes=n_bytes)

    def finalize(self, record: BatchRecord, tell_lost: TellLost) -> None:
        """Make the files of a batch that is finalizing; lines that still wait are told as lost."""
        made: dict[bool, FileWriter | None] = {}
        try:
            for is_ok in (True, False):
                made[is_ok] = self._write_results(record, is_ok, tell_lost)
            self._keep_results(record, made)
        except BaseException:
            for writer in made.values():
                if writer is not None:
                    writer.drop()
            raise

    def _keep_results(self, record: BatchRecord, made: Mapping[bool, FileWriter | None]) -> None:
        """Let the files take the place of the lines, in one transaction."""
        now = self.now()
        with self._database:
            for is_ok, writer in made.items():
                if writer is not None:
                    name = f"{record.batch_id}_{'output' if is_ok else 'error'}.jsonl"
                    expires = now + record.order.keep_output_s
                    file = StoredFile(writer.file_id, record.owner, "batch_output", name, writer.n_bytes, now, expires)
                    self.files.insert(file)
            output, error = (None if one is None else one.file_id for one in made.values())
            self.batches.set_results(record.batch_id, output, error)
            self.lines.delete_of(record.batch_id)
            self.batches.move(record, record.ends_as, now, None)

    def _write_results(self, record: BatchRecord, is_ok: bool, tell_lost: TellLost) -> FileWriter | None:
        """A file of results that is complete; None where there are none."""
        writer: FileWriter | None = None
        try:
            for text in self.lines.results(record.batch_id, is_ok, tell_lost):
                writer = writer or self.files.new_output()
                writer.write(text.encode() + b"\n")
            if writer is not None:
                writer.keep()
        except BaseException:
            if writer is not None:
                writer.drop()
            raise
        return writer

    # --- cleaning ---------------------------------------------------------------------------------------------------

    def clean(self) -> None:
        """Delete files that have expired, and batches that ended so long ago that their files have."""
        now = self.now()
        self.files.delete(self.files.expired(now))
        with self._database:
            self.batches.delete_expired(now - self.keep_s)

    def counts(self) -> Mapping[str, int]:
        """Lines of open batches, by what became of them."""
        records = self.batches.all_open()
        return {
            "waiting": sum(record.n_left for record in records),
            "completed": sum(record.completed for record in records),
            "failed": sum(record.failed for record in records),
        }

    @property
    def used_bytes(self) -> int:
        """Bytes of all files and results."""
        return self.files.used_bytes()

    def check_integrity(self) -> None:
        """Raises AssertionError unless counts, lines and files agree."""
        for record in self.batches.all_open():
            counted = self.lines.counted(record.batch_id)
            assert counted.get(True, 0) == record.completed
            assert counted.get(False, 0) == record.failed
            assert sum(counted.values()) == record.total
        for file_id, size in self._database.execute("SELECT id, size FROM files"):
            assert self.files.path(file_id).stat().st_size == size
        assert self._database.execute("PRAGMA foreign_key_check").fetchall() == []


def _broken(error: sqlite3.Error) -> Unavailable:
    logger.debug("the database of batches failed: %s", error)
    return Unavailable(
        f"The batches cannot be used now: {error}. Try again when whoever runs the server has looked at its disk.",
        retry_after_s=_BROKEN_S,
    )
