"""Table of lines: what of a batch waits, and the results until they are files."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping

from ggufd.batches.records import BatchLine, LineResult

_PAGE = 500
"""Results that are read at a time when a file is made of them."""

TellLost = Callable[[BatchLine], str]
"""Makes the line of the error file for a line that will not be computed."""


class LineTable:
    """Table of lines over `database`. Changes lie within the caller's transaction. Not thread-safe."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def insert(self, batch_id: str, lines: Iterable[BatchLine]) -> int:
        """Add the lines of a batch; returns how many."""
        rows = [(batch_id, one.number, one.offset, one.n_bytes, one.custom_id) for one in lines]
        self._database.executemany(
            "INSERT INTO lines (batch, number, start, size, custom_id) VALUES (?, ?, ?, ?, ?)", rows
        )
        return len(rows)

    def waiting(self, batch_id: str, after: int, limit: int) -> list[BatchLine]:
        """The next lines that wait, behind number `after`."""
        rows = self._database.execute(
            "SELECT number, start, size, custom_id, attempts FROM lines "
            "WHERE batch = ? AND number > ? AND is_ok IS NULL ORDER BY number LIMIT ?",
            (batch_id, after, limit),
        )
        return [BatchLine(*row) for row in rows]

    def note_attempt(self, batch_id: str, line: BatchLine) -> int:
        """Count a failed attempt that is worth another; returns how many there were."""
        self._database.execute(
            "UPDATE lines SET attempts = attempts + 1 WHERE batch = ? AND number = ?", (batch_id, line.number)
        )
        return line.attempts + 1

    def tell(self, batch_id: str, line: BatchLine, result: LineResult) -> bool:
        """Store the result of a line; whether it had none before."""
        told = self._database.execute(
            "UPDATE lines SET is_ok = ?, result = ? WHERE batch = ? AND number = ? AND is_ok IS NULL",
            (result.is_ok, result.text, batch_id, line.number),
        )
        return bool(told.rowcount)

    def results(self, batch_id: str, is_ok: bool, tell_lost: TellLost) -> Iterator[str]:
        """Results in the order of the input; those of one kind, the lost lines among the failed ones."""
        wanted = "is_ok = 1" if is_ok else "coalesce(is_ok, 0) = 0"
        after = 0
        while True:
            rows = self._database.execute(
                f"SELECT result, number, start, size, custom_id, attempts FROM lines "
                f"WHERE batch = ? AND number > ? AND {wanted} ORDER BY number LIMIT ?",
                (batch_id, after, _PAGE),
            ).fetchall()
            if not rows:
                return
            for result, *fields in rows:
                yield tell_lost(BatchLine(*fields)) if result is None else result
            after = rows[-1][1]

    def counted(self, batch_id: str) -> Mapping[bool | None, int]:
        """Number of lines by whether their result is good; None has those that wait."""
        rows = self._database.execute(
            "SELECT is_ok, count(*) FROM lines WHERE batch = ? GROUP BY is_ok", (batch_id,)
        ).fetchall()
        return {None if is_ok is None else bool(is_ok): n for is_ok, n in rows}

    def delete_of(self, batch_id: str) -> None:
        """Delete the lines of a batch."""
        self._database.execute("DELETE FROM lines WHERE batch = ?", (batch_id,))
