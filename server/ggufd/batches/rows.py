"""Table of batches: their rows, read and changed within the caller's transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from ggufd.batches.records import BatchOrder, BatchRecord, BatchStatus, LineFault
from ggufd.errors import NotFound

_COLUMNS = (
    "id, owner, status, created, expires, total, completed, failed, ends_as, output_file, error_file, wanted, times, "
    "faults"
)
_OPEN = tuple(status.value for status in BatchStatus if status.is_open)
_OPEN_MARKS = ", ".join("?" * len(_OPEN))


class BatchTable:
    """Table of batches over `database`. Not thread-safe."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def insert(self, record: BatchRecord) -> None:
        """Add a batch."""
        key = (record.batch_id, record.owner, record.status.value, record.created, record.expires)
        row = (*key, record.order.input_file, record.ends_as.value, json.dumps(asdict(record.order)), "{}", "[]")
        self._database.execute(
            "INSERT INTO batches (id, owner, status, created, expires, input_file, ends_as, wanted, times, faults) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            row,
        )

    def get(self, owner: str, batch_id: str) -> BatchRecord:
        """One batch of a key. Raises NotFound."""
        found = self._select("id = ? AND owner = ?", (batch_id, owner))
        if not found:
            raise NotFound(f"There is no batch '{batch_id[:100]}' of this key. It may have been deleted, or expired.")
        return found[0]

    def all_of(self, owner: str) -> list[BatchRecord]:
        """Batches of a key, the newest first."""
        return self._select("owner = ? ORDER BY created DESC, rowid DESC", (owner,))

    def all_open(self) -> list[BatchRecord]:
        """Batches of all keys for which something is to be done, the oldest first."""
        return self._select(f"status IN ({_OPEN_MARKS}) ORDER BY created, rowid", _OPEN)

    def move(self, record: BatchRecord, status: BatchStatus, now: int, ends_as: BatchStatus | None) -> BatchRecord:
        """Bring a batch to a status at a Unix time; one that has another by now than `record` says stays so."""
        is_as = self.get(record.owner, record.batch_id)
        if is_as.status is not record.status:
            return is_as
        times = json.dumps({**is_as.times, status.value: now})
        self._database.execute(
            "UPDATE batches SET status = ?, times = ?, ends_as = ? WHERE id = ?",
            (status.value, times, (ends_as or is_as.ends_as).value, record.batch_id),
        )
        return self.get(record.owner, record.batch_id)

    def set_faults(self, batch_id: str, faults: Iterable[LineFault]) -> None:
        told = json.dumps([asdict(fault) for fault in faults])
        self._database.execute("UPDATE batches SET faults = ? WHERE id = ?", (told, batch_id))

    def set_total(self, batch_id: str, n_lines: int) -> None:
        self._database.execute("UPDATE batches SET total = ? WHERE id = ?", (n_lines, batch_id))

    def count(self, batch_id: str, *, is_ok: bool, n_bytes: int) -> None:
        """Count a line whose result of `n_bytes` bytes is stored."""
        column = "completed" if is_ok else "failed"
        self._database.execute(
            f"UPDATE batches SET {column} = {column} + 1, result_bytes = result_bytes + ? WHERE id = ?",
            (n_bytes, batch_id),
        )

    def set_results(self, batch_id: str, output: str | None, error: str | None) -> None:
        """Set the ids of the files of results; what is not completed has failed."""
        self._database.execute(
            "UPDATE batches SET output_file = ?, error_file = ?, failed = total - completed, result_bytes = 0 "
            "WHERE id = ?",
            (output, error, batch_id),
        )

    def delete(self, batch_id: str) -> None:
        """Delete a batch, with its lines."""
        self._database.execute("DELETE FROM batches WHERE id = ?", (batch_id,))

    def delete_expired(self, before: int) -> None:
        """Delete batches that have ended and whose time was over at a Unix time."""
        self._database.execute(
            f"DELETE FROM batches WHERE status NOT IN ({_OPEN_MARKS}) AND expires <= ?", (*_OPEN, before)
        )

    def _select(self, where: str, values: Sequence[str]) -> list[BatchRecord]:
        rows = self._database.execute(f"SELECT {_COLUMNS} FROM batches WHERE {where}", values)
        return [_record(row) for row in rows]


def _record(row: Sequence[object]) -> BatchRecord:
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
