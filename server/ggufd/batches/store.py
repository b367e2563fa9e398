"""Store of batches: files, batches and lines of every key, in one folder.

Each belongs to the key that made it and does not exist for others. What is promised of a line:

    waiting    until its result is stored, whatever ends meanwhile: it is computed again then
    told       its result is stored, once, and counted in the same transaction

Every call waits on a thread: the disk may be slow. Knows neither how a line is computed nor what it says.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import threading
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from ggufd.batches.database import connect, prepare_folder
from ggufd.batches.files import FileTable, FileWriter, StorageLimits
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
from ggufd.errors import InvalidRequest, NotFound, Unavailable

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_COLUMNS = (
    "id, owner, status, created, expires, total, completed, failed, ends_as, output_file, error_file, wanted, times, "
    "faults"
)
_OPEN = tuple(status.value for status in BatchStatus if status.is_open)
_PAGE = 500
"""Results that are read at a time when a file is made of them."""

_BROKEN_S = 30
"""Retry-After of a database that failed; an assumption, for only a person can know."""

TellLost = Callable[[BatchLine], str]
"""Makes the line of the error file for a line that will not be computed."""


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
        self._files = FileTable(self._database, folder / "files", limits)
        self._files.remove_strays()
        self._finalizer = weakref.finalize(self, self._database.close)

    def close(self) -> None:
        """Close the database. Happens by itself when the store is given up, or the program ends."""
        with self._lock:
            self._finalizer()

    async def run(self, work: Callable[Concatenate[BatchStore, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The result of one of the methods below, called on a thread with the database to itself.

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
        return self._files.new_upload(owner)

    def keep_upload(self, writer: FileWriter, owner: str, filename: str, keep_s: int) -> StoredFile:
        """Keep an upload that is complete."""
        created = self.now()
        file = StoredFile(writer.file_id, owner, "batch", filename, writer.n_bytes, created, created + keep_s)
        writer.keep()
        with self._database:
            self._files.insert(file)
        return file

    def file(self, owner: str, file_id: str) -> StoredFile:
        """One file. Raises NotFound."""
        return self._files.get(owner, file_id)

    def files(self, owner: str) -> list[StoredFile]:
        """Files of a key, the oldest first."""
        return self._files.all_of(owner)

    def content(self, owner: str, file_id: str) -> tuple[StoredFile, Path]:
        """A file, and where its content lies. Raises NotFound."""
        file = self._files.get(owner, file_id)
        return file, self._files.path(file.file_id)

    def delete_file(self, owner: str, file_id: str) -> None:
        """Delete a file. Raises NotFound, or InvalidRequest while a batch reads it."""
        file = self._files.get(owner, file_id)
        user = next(self._files.users(file.file_id), None)
        if user is not None:
            raise InvalidRequest(f"The file '{file.file_id}' is being computed by '{user}'. Cancel that first.")
        self._files.delete([file])

    # --- batches ----------------------------------------------------------------------------------------------------

    def create(self, owner: str, order: BatchOrder) -> BatchRecord:
        """A new batch. Raises NotFound for its file."""
        file = self._files.get(owner, order.input_file)
        if file.purpose != "batch":
            raise InvalidRequest(
                f"'input_file_id': expected a file of purpose 'batch', got one of '{file.purpose}'.",
                param="input_file_id",
            )
        now = self.now()
        record = BatchRecord(
            f"batch_{uuid.uuid4().hex}", owner, order, BatchStatus.VALIDATING, now, now + order.window_s
        )
        row = (*_key_of(record), order.input_file, record.ends_as.value, json.dumps(asdict(order)), "{}", "[]")
        with self._database:
            self._database.execute(
                "INSERT INTO batches (id, owner, status, created, expires, input_file, ends_as, wanted, times, faults) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
        return record

    def get(self, owner: str, batch_id: str) -> BatchRecord:
        """One batch of a key. Raises NotFound."""
        row = self._database.execute(
            f"SELECT {_COLUMNS} FROM batches WHERE id = ? AND owner = ?", (batch_id, owner)
        ).fetchone()
        if row is None:
            raise NotFound(f"There is no batch '{batch_id[:100]}' of this key. It may have been deleted, or expired.")
        return _batch(row)

    def batches(self, owner: str) -> list[BatchRecord]:
        """Batches of a key, the newest first."""
        rows = self._database.execute(
            f"SELECT {_COLUMNS} FROM batches WHERE owner = ? ORDER BY created DESC, rowid DESC", (owner,)
        )
        return [_batch(row) for row in rows]

    def open_batches(self) -> list[BatchRecord]:
        """Batches of all keys for which something is to be done, the oldest first."""
        marks = ", ".join("?" * len(_OPEN))
        rows = self._database.execute(
            f"SELECT {_COLUMNS} FROM batches WHERE status IN ({marks}) ORDER BY created, rowid", _OPEN
        )
        return [_batch(row) for row in rows]

    def cancel(self, owner: str, batch_id: str) -> BatchRecord:
        """Ask for the end of a batch. Raises InvalidRequest where it has ended already."""
        record = self.get(owner, batch_id)
        if record.status is BatchStatus.CANCELLING:
            return record
        if record.status not in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
            raise InvalidRequest(f"The batch '{record.batch_id}' cannot be cancelled: it is {record.status.value}.")
        return self.move(record, BatchStatus.CANCELLING, ends_as=BatchStatus.CANCELLED)

    def delete(self, owner: str, batch_id: str) -> None:
        """Forget a batch that has ended; its files stay. Raises InvalidRequest while it is open."""
        record = self.get(owner, batch_id)
        if record.status.is_open:
            raise InvalidRequest(f"The batch '{record.batch_id}' is {record.status.value}. Cancel it first.")
        with self._database:
            self._database.execute("DELETE FROM batches WHERE id = ?", (record.batch_id,))

    def move(self, record: BatchRecord, status: BatchStatus, *, ends_as: BatchStatus | None = None) -> BatchRecord:
        """Bring a batch to a status; one that was cancelled meanwhile stays so."""
        with self._database:
            return self._move(record, status, ends_as)

    def _move(self, record: BatchRecord, status: BatchStatus, ends_as: BatchStatus | None = None) -> BatchRecord:
        now = self.get(record.owner, record.batch_id)
        if now.status is not record.status:
            return now
        times = json.dumps({**now.times, status.value: self.now()})
        self._database.execute(
            "UPDATE batches SET status = ?, times = ?, ends_as = ? WHERE id = ?",
            (status.value, times, (ends_as or now.ends_as).value, record.batch_id),
        )
        return self.get(record.owner, record.batch_id)

    def refuse(self, record: BatchRecord, faults: Sequence[LineFault]) -> None:
        """End a batch whose file cannot be computed."""
        with self._database:
            if self._move(record, BatchStatus.FAILED).status is BatchStatus.FAILED:
                told = json.dumps([asdict(fault) for fault in faults])
                self._database.execute("UPDATE batches SET faults = ? WHERE id = ?", (told, record.batch_id))

    def begin(self, record: BatchRecord, lines: Iterable[BatchLine]) -> None:
        """Take in the lines of a batch whose file is valid; from now on they wait."""
        with self._database:
            if self._move(record, BatchStatus.IN_PROGRESS).status is not BatchStatus.IN_PROGRESS:
                return
            rows = [(record.batch_id, one.number, one.offset, one.n_bytes, one.custom_id) for one in lines]
            self._database.executemany(
                "INSERT INTO lines (batch, number, start, size, custom_id) VALUES (?, ?, ?, ?, ?)", rows
            )
            self._database.execute("UPDATE batches SET total = ? WHERE id = ?", (len(rows), record.batch_id))

    # --- lines ------------------------------------------------------------------------------------------------------

    def input_path(self, record: BatchRecord) -> Path:
        """Where the lines of a batch lie."""
        return self._files.path(record.order.input_file)

    def waiting(self, record: BatchRecord, after: int, limit: int) -> list[BatchLine]:
        """The next lines that wait, behind number `after`."""
        rows = self._database.execute(
            "SELECT number, start, size, custom_id, attempts FROM lines "
            "WHERE batch = ? AND number > ? AND is_ok IS NULL ORDER BY number LIMIT ?",
            (record.batch_id, after, limit),
        )
        return [BatchLine(*row) for row in rows]

    def read_line(self, record: BatchRecord, line: BatchLine) -> bytes:
        """What a line says. Raises OSError."""
        with self.input_path(record).open("rb") as content:
            content.seek(line.offset)
            return content.read(line.n_bytes)

    def note_attempt(self, record: BatchRecord, line: BatchLine) -> int:
        """Count a failed attempt that is worth another; returns how many there were."""
        with self._database:
            self._database.execute(
                "UPDATE lines SET attempts = attempts + 1 WHERE batch = ? AND number = ?",
                (record.batch_id, line.number),
            )
        return line.attempts + 1

    def tell(self, record: BatchRecord, line: BatchLine, result: LineResult) -> None:
        """Store the result of a line. Raises StorageFull, or sqlite3.Error where the disk does not take it."""
        n_bytes = len(result.text.encode()) + 1
        self._files.check_room(n_bytes)
        with self._database:
            self._tell(record, line, result, n_bytes)

    def _tell(self, record: BatchRecord, line: BatchLine, result: LineResult, n_bytes: int) -> None:
        told = self._database.execute(
            "UPDATE lines SET is_ok = ?, result = ? WHERE batch = ? AND number = ? AND is_ok IS NULL",
            (result.is_ok, result.text, record.batch_id, line.number),
        )
        if told.rowcount:
            column = "completed" if result.is_ok else "failed"
            self._database.execute(
                f"UPDATE batches SET {column} = {column} + 1, result_bytes = result_bytes + ? WHERE id = ?",
                (n_bytes, record.batch_id),
            )

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
                    self._files.insert(file)
            output, error = (None if one is None else one.file_id for one in made.values())
            self._database.execute(
                "UPDATE batches SET output_file = ?, error_file = ?, failed = total - completed, result_bytes = 0 "
                "WHERE id = ?",
                (output, error, record.batch_id),
            )
            self._database.execute("DELETE FROM lines WHERE batch = ?", (record.batch_id,))
            self._move(record, record.ends_as)

    def _write_results(self, record: BatchRecord, is_ok: bool, tell_lost: TellLost) -> FileWriter | None:
        """A file of results that is complete; None where there are none."""
        writer: FileWriter | None = None
        try:
            for text in self._results(record, is_ok, tell_lost):
                writer = writer or self._files.new_output()
                writer.write(text.encode() + b"\n")
            if writer is not None:
                writer.keep()
        except BaseException:
            if writer is not None:
                writer.drop()
            raise
        return writer

    def _results(self, record: BatchRecord, is_ok: bool, tell_lost: TellLost) -> Iterator[str]:
        """Results in the order of the input; those of one kind, the lost lines among the failed ones."""
        wanted = "is_ok = 1" if is_ok else "coalesce(is_ok, 0) = 0"
        after = 0
        while True:
            rows = self._database.execute(
                f"SELECT result, number, start, size, custom_id, attempts FROM lines "
                f"WHERE batch = ? AND number > ? AND {wanted} ORDER BY number LIMIT ?",
                (record.batch_id, after, _PAGE),
            ).fetchall()
            if not rows:
                return
            for result, *fields in rows:
                yield tell_lost(BatchLine(*fields)) if result is None else result
            after = rows[-1][1]

    # --- cleaning ---------------------------------------------------------------------------------------------------

    def clean(self) -> None:
        """Delete files that have expired, and batches that ended so long ago that their files have."""
        now = self.now()
        self._files.delete(self._files.expired(now))
        marks = ", ".join("?" * len(_OPEN))
        with self._database:
            self._database.execute(
                f"DELETE FROM batches WHERE status NOT IN ({marks}) AND expires + ? <= ?", (*_OPEN, self.keep_s, now)
            )

    def counts(self) -> Mapping[str, int]:
        """Lines of open batches, by what became of them."""
        records = self.open_batches()
        return {
            "waiting": sum(record.n_left for record in records),
            "completed": sum(record.completed for record in records),
            "failed": sum(record.failed for record in records),
        }

    @property
    def used_bytes(self) -> int:
        """Bytes of all files and results."""
        return self._files.used_bytes()

    def check_integrity(self) -> None:
        """Raises AssertionError unless counts, lines and files agree."""
        for record in self.open_batches():
            counted = dict(
                self._database.execute(
                    "SELECT coalesce(is_ok, 2), count(*) FROM lines WHERE batch = ? GROUP BY 1", (record.batch_id,)
                ).fetchall()
            )
            assert counted.get(1, 0) == record.completed
            assert counted.get(0, 0) == record.failed
            assert sum(counted.values()) == record.total
        for file_id, size in self._database.execute("SELECT id, size FROM files"):
            assert self._files.path(file_id).stat().st_size == size
        assert self._database.execute("PRAGMA foreign_key_check").fetchall() == []


def _broken(error: sqlite3.Error) -> Unavailable:
    logger.debug("the database of batches failed: %s", error)
    return Unavailable(
        f"The batches cannot be used now: {error}. Try again when whoever runs the server has looked at its disk.",
        retry_after_s=_BROKEN_S,
    )


def _key_of(record: BatchRecord) -> tuple[str, str, str, int, int]:
    return record.batch_id, record.owner, record.status.value, record.created, record.expires


def _batch(row: Sequence[object]) -> BatchRecord:
    (
        batch_id,
        owner,
        status,
        created,
        expires,
        total,
        completed,
        failed,
        ends_as,
        output,
        error,
        wanted,
        times,
        faults,
    ) = row
    return BatchRecord(
        str(batch_id),
        str(owner),
        BatchOrder(**json.loads(str(wanted))),
        BatchStatus(status),
        int(str(created)),
        int(str(expires)),
        int(str(total)),
        int(str(completed)),
        int(str(failed)),
        json.loads(str(times)),
        None if output is None else str(output),
        None if error is None else str(error),
        tuple(LineFault(**one) for one in json.loads(str(faults))),
        BatchStatus(ends_as),
    )
