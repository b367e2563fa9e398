"""Response store for `previous_response_id`: a bounded SQLite database, in memory or in a file.

Each response belongs to the key that made it and does not exist for others. Eviction is LRU, and never takes a response
before those that continue it: using one uses all that it continues, the first one last. Knows no request and no
response object: records are JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ggufd.errors import ConfigError, NotFound, Unavailable

logger = logging.getLogger(__name__)

_VERSION = 1
"""Of the tables; a file with another one is refused."""

_BROKEN_S = 30
"""Retry-After of a database that failed; an assumption, for only a person can know."""

_Found = TypeVar("_Found")

_TABLES = """
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, previous TEXT, touched INTEGER NOT NULL, size INTEGER NOT NULL,
    record TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS by_touched ON responses (touched, size);
CREATE TABLE IF NOT EXISTS items (
    owner TEXT NOT NULL, id TEXT NOT NULL, response TEXT NOT NULL REFERENCES responses (id) ON DELETE CASCADE,
    PRIMARY KEY (owner, id)
);
CREATE INDEX IF NOT EXISTS by_response ON items (response);
"""

_CHAIN = """
WITH RECURSIVE chain (id, previous, depth) AS (
    SELECT id, previous, 0 FROM responses WHERE id = :id AND owner = :key_digest
    UNION ALL
    SELECT one.id, one.previous, depth + 1
    FROM responses AS one JOIN chain ON one.id = chain.previous WHERE one.owner = :key_digest
)
"""
"""An answer at depth 0, the one that it goes on from at 1, and so on; what goes on from another key's ends there."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """Stored response: the object, the input items sent for it, and the id of the response that it continues."""

    response: dict[str, Any]
    input: list[dict[str, Any]]
    previous: str | None = None

    @property
    def response_id(self) -> str:
        response_id: str = self.response["id"]
        return response_id

    @property
    def items(self) -> list[dict[str, Any]]:
        """All items: input, then output."""
        return [*self.input, *self.response["output"]]


class ResponseStore:
    """LRU store of at most `max_count` responses of `max_bytes` in all. `path` is a file that persists; None is memory.

    Raises ConfigError when the file cannot be used. Every call waits on a thread: the disk may be slow.
    """

    def __init__(self, path: Path | None = None, *, max_count: int = 1000, max_bytes: int = 64 << 20) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        try:
            self._connection = _open(path)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"responses_path: {path} cannot be used: {error}") from None
        self._finalizer = weakref.finalize(self, self._connection.close)
        (self._clock,) = self._connection.execute("SELECT coalesce(max(touched), 0) FROM responses").fetchone()

    def close(self) -> None:
        """Close the database. Happens by itself when the store is given up, or the program ends."""
        with self._lock:
            self._finalizer()

    async def keep(self, key_digest: str, kept: StoredResponse) -> bool:
        """Keep an answer; False when that cannot be, which the log explains."""
        try:
            return await asyncio.to_thread(self._keep, key_digest, kept)
        except sqlite3.Error as error:
            logger.error("a response could not be stored: %s", error)
            return False

    async def chain(self, key_digest: str, response_id: str) -> list[StoredResponse]:
        """This answer and all that it goes on from, the first one first. Raises NotFound when one of them is gone."""
        return await self._call(self._chain, key_digest, response_id)

    async def get(self, key_digest: str, response_id: str) -> StoredResponse:
        """One answer. Raises NotFound."""
        return await self._call(self._get, key_digest, response_id)

    async def item(self, key_digest: str, item_id: str) -> dict[str, Any] | None:
        """An item by its id, out of any answer."""
        return await self._call(self._item, key_digest, item_id)

    async def delete(self, key_digest: str, response_id: str) -> None:
        """Forget one answer. Raises NotFound."""
        await self._call(self._delete, key_digest, response_id)

    async def _call(self, work: Callable[[str, str], _Found], key_digest: str, name: str) -> _Found:
        """Raises Unavailable when the database cannot do it."""
        try:
            return await asyncio.to_thread(work, key_digest, name)
        except sqlite3.Error as error:
            logger.error("the stored responses cannot be used: %s", error)
            raise Unavailable(
                f"The stored responses cannot be used now: {error}. Send the conversation as 'input', or try again "
                f"when whoever runs the server has looked at its disk.",
                retry_after_s=_BROKEN_S,
            ) from None

    def check_integrity(self) -> None:
        """Raises AssertionError when a bound does not hold, or an answer would go before one that goes on from it."""
        with self._lock:
            count, size = self._totals()
            assert count <= self._max_count
            assert size <= self._max_bytes
            early = self._connection.execute(
                "SELECT count(*) FROM responses AS one JOIN responses AS other ON one.previous = other.id "
                "WHERE one.owner = other.owner AND one.touched >= other.touched"
            ).fetchone()
            assert early == (0,), "an answer is older than one that goes on from it"
            assert self._connection.execute("PRAGMA foreign_key_check").fetchall() == []

    def _keep(self, key_digest: str, kept: StoredResponse) -> bool:
        record = json.dumps({"response": kept.response, "input": kept.input}, separators=(",", ":"))
        if len(record) > self._max_bytes:
            # Everybody's would go to make room for it, and then it itself.
            logger.warning("a response of %d bytes is not stored: that is more than all may take", len(record))
            return False
        with self._lock, self._connection as database:
            row = (kept.response_id, key_digest, kept.previous, 0, len(record), record)
            database.execute("INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?)", row)
            database.executemany(
                "INSERT OR REPLACE INTO items VALUES (?, ?, ?)",
                [(key_digest, item["id"], kept.response_id) for item in kept.items if item.get("id")],
            )
            self._touch(key_digest, kept.response_id)
            self._evict()
            # Of a conversation that fills the store alone, the end is what goes first.
            found = database.execute("SELECT 1 FROM responses WHERE id = ?", (kept.response_id,)).fetchone()
        if found is None:
            logger.warning("a response is not stored: what it goes on from takes all the room")
        return found is not None

    def _chain(self, key_digest: str, response_id: str) -> list[StoredResponse]:
        asked = {"id": response_id, "key_digest": key_digest}
        with self._lock:
            rows = self._connection.execute(
                f"{_CHAIN} SELECT record, one.previous FROM chain JOIN responses AS one USING (id) ORDER BY depth DESC",
                asked,
            ).fetchall()
            # A disk that takes no more forgets who was used last, and still tells what it holds.
            with contextlib.suppress(sqlite3.OperationalError), self._connection:
                self._touch(key_digest, response_id)
        if not rows:
            raise _not_found(response_id)
        chain = [_kept(*row) for row in rows]
        if (gone := chain[0].previous) is not None:
            raise NotFound(
                f"The response '{response_id}' goes on from others, and '{gone}' of them is no longer stored. Send the "
                "conversation as 'input'."
            )
        return chain

    def _get(self, key_digest: str, response_id: str) -> StoredResponse:
        with self._lock:
            row = self._connection.execute(
                "SELECT record, previous FROM responses WHERE id = ? AND owner = ?", (response_id, key_digest)
            ).fetchone()
        if row is None:
            raise _not_found(response_id)
        return _kept(*row)

    def _item(self, key_digest: str, item_id: str) -> dict[str, Any] | None:
        with self._lock:
            row = self._connection.execute(
                "SELECT record, previous FROM responses JOIN items ON responses.id = items.response "
                "WHERE items.owner = ? AND items.id = ?",
                (key_digest, item_id),
            ).fetchone()
        return None if row is None else next(item for item in _kept(*row).items if item.get("id") == item_id)

    def _delete(self, key_digest: str, response_id: str) -> None:
        with self._lock, self._connection as database:
            gone = database.execute("DELETE FROM responses WHERE id = ? AND owner = ?", (response_id, key_digest))
            if not gone.rowcount:
                raise _not_found(response_id)

    def _touch(self, key_digest: str, response_id: str) -> None:
        """Make an answer the one used last, but for those that it goes on from."""
        asked = {"id": response_id, "key_digest": key_digest}
        rows = self._connection.execute(f"{_CHAIN} SELECT id FROM chain ORDER BY depth", asked).fetchall()
        touched = [(clock, row[0]) for clock, row in enumerate(rows, self._clock + 1)]
        self._connection.executemany("UPDATE responses SET touched = ? WHERE id = ?", touched)
        self._clock += len(rows)

    def _evict(self) -> None:
        while True:
            count, size = self._totals()
            if count <= self._max_count and size <= self._max_bytes:
                return
            self._connection.execute(
                "DELETE FROM responses WHERE id = (SELECT id FROM responses ORDER BY touched LIMIT 1)"
            )

    def _totals(self) -> tuple[int, int]:
        count, size = self._connection.execute("SELECT count(*), coalesce(sum(size), 0) FROM responses").fetchone()
        return count, size


def _open(path: Path | None) -> sqlite3.Connection:
    """A connection with the tables. The file is for its owner's eyes: it holds conversations."""
    if path is not None:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(":memory:" if path is None else path, check_same_thread=False)
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA journal_mode = WAL")
        # With WAL this loses the last answers at a power cut, and never the file.
        connection.execute("PRAGMA synchronous = NORMAL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise sqlite3.DatabaseError(f"it is of version {version} and {_VERSION} was expected; move it away")
        connection.executescript(_TABLES)
        connection.execute(f"PRAGMA user_version = {_VERSION}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _kept(record: str, previous: str | None) -> StoredResponse:
    return StoredResponse(**json.loads(record), previous=previous)


def _not_found(response_id: str) -> NotFound:
    return NotFound(
        f"There is no stored response '{response_id[:100]}' of this key. It may have been deleted, made with 'store' "
        "set to false, or pushed out by newer ones."
    )
