"""Database of batches: tables, and the one connection that a folder may have at a time."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from ggufd.errors import ConfigError

_VERSION = 1
"""Of the tables; a file with another one is refused."""

_TABLES = """
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, purpose TEXT NOT NULL, filename TEXT NOT NULL, size INTEGER NOT NULL,
    created INTEGER NOT NULL, expires INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS files_of_owner ON files (owner, created);
CREATE TABLE IF NOT EXISTS batches (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, status TEXT NOT NULL, created INTEGER NOT NULL, expires INTEGER NOT NULL,
    input_file TEXT NOT NULL, total INTEGER NOT NULL DEFAULT 0, completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0, result_bytes INTEGER NOT NULL DEFAULT 0, ends_as TEXT NOT NULL,
    output_file TEXT, error_file TEXT, wanted TEXT NOT NULL, times TEXT NOT NULL, faults TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS batches_of_owner ON batches (owner, created);
CREATE TABLE IF NOT EXISTS lines (
    batch TEXT NOT NULL REFERENCES batches (id) ON DELETE CASCADE, number INTEGER NOT NULL, start INTEGER NOT NULL,
    size INTEGER NOT NULL, custom_id TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, is_ok INTEGER, result TEXT,
    PRIMARY KEY (batch, number)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS waiting_lines ON lines (batch, number) WHERE is_ok IS NULL;
"""


def prepare_folder(folder: Path) -> None:
    """Make the folder and the one of its files, for the eyes of the server's user only. Raises ConfigError."""
    try:
        for one in (folder, folder / "files"):
            one.mkdir(mode=0o700, parents=True, exist_ok=True)
            one.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"batch_dir: {folder} cannot be used as a folder: {error.strerror}") from None


def connect(folder: Path) -> sqlite3.Connection:
    """The connection to a folder's database, which no other process can have meanwhile. Raises ConfigError."""
    path = folder / "batches.sqlite"
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(path, check_same_thread=False, timeout=1.0)
        try:
            _prepare(connection)
        except sqlite3.Error:
            connection.close()
            raise
    except sqlite3.OperationalError as error:
        busy = "another server uses it; give each a folder of its own" if "locked" in str(error) else str(error)
        raise ConfigError(f"batch_dir: {folder} cannot be used: {busy}") from None
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"batch_dir: {folder} cannot be used: {error}") from None
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    # Two servers would both compute every line.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA journal_mode = WAL")
    # A power cut may lose the last results, and never the file: those lines are computed again.
    connection.execute("PRAGMA synchronous = NORMAL")
    # What is deleted was somebody's text.
    connection.execute("PRAGMA secure_delete = ON")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version not in (0, _VERSION):
        raise sqlite3.DatabaseError(f"its database is of version {version} and {_VERSION} was expected; move it away")
    connection.executescript(_TABLES)
    connection.execute(f"PRAGMA user_version = {_VERSION}")
    connection.commit()
