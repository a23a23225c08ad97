"""The database of jobs: opening it, what is in it, and that it is ours."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from omni_serve.jobs.errors import JobStoreError
from omni_serve.jobs.folder import make_private_file

SCHEMA_VERSION = 1
"""In `user_version`. Raise it with every change of the tables, and turn older ones into new ones in `_prepare`."""

APPLICATION_ID = 0x6F6D6E6A  # "omnj"

# Longest wait for another program that looks into the database, in seconds.
_BUSY_S = 5.0

_SCHEMA = """
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order in which jobs were made, no number twice
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('queued', 'in_progress', 'completed', 'failed')),
    model TEXT NOT NULL,
    request TEXT NOT NULL,                  -- JSON, with the seed
    uploads TEXT NOT NULL,                  -- JSON: [name, ...]
    files TEXT NOT NULL,                    -- JSON: [[name, media type, size in bytes], ...]
    error TEXT,                             -- JSON: [code, message]
    stored_bytes INTEGER NOT NULL,          -- of uploads and files together
    attempts INTEGER NOT NULL DEFAULT 0,    -- times that it was begun, but for those that were interrupted in order
    created_at INTEGER NOT NULL,            -- Unix time in seconds, as all times
    completed_at INTEGER,
    expires_at INTEGER,
    remixed_from TEXT
);
CREATE INDEX jobs_by_status ON jobs (status, seq);
CREATE INDEX jobs_by_kind ON jobs (kind, seq);
CREATE TABLE idempotency (
    key TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    created_at REAL NOT NULL
);
CREATE INDEX idempotency_by_job ON idempotency (job);
"""


def open_database(path: Path | None) -> sqlite3.Connection:
    """Open the database, and make it if it is new.

    Commits are synced (`synchronous=FULL`): with NORMAL a loss of power could take back the last ones, so that a client
    would hold the id of a job that is gone, or a job would be done twice. A job takes seconds and three commits of some
    milliseconds, so this costs nothing that one would notice.

    Args:
        path: The file; None keeps it in memory.

    Returns:
        A connection for any thread, one at a time, with no transaction begun on its own.

    Raises:
        JobStoreError: It is not ours, or made by a newer version.
        sqlite3.Error: It is damaged or cannot be read.
        OSError: It cannot be made.
    """
    if path is not None:
        make_private_file(path)
    connection = sqlite3.connect(
        ":memory:" if path is None else path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
    )
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        _check(connection, path)  # before anything is written to it
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")  # what was deleted is not to be read from the file
        _prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def empty_log(connection: sqlite3.Connection) -> None:
    """Move what the log holds into the database, and free its space.

    Raises:
        sqlite3.Error: There is no room even for that.
    """
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what the block does, or nothing of it if it or the commit raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _check(connection: sqlite3.Connection, path: Path | None) -> None:
    application, version = _number(connection, "application_id"), _number(connection, "user_version")
    is_empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if is_empty and application == 0 and version == 0:
        return
    if application != APPLICATION_ID:
        raise JobStoreError(
            f"{path} is a database of another program. Name another folder (--data-dir), or move the file away."
        )
    if version != SCHEMA_VERSION:
        raise JobStoreError(
            f"{path} has version {version} of the tables, and this omni-serve knows version {SCHEMA_VERSION} alone. "
            "Start the omni-serve that made it, or name another folder (--data-dir)."
        )
    result = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if result != "ok":
        raise sqlite3.DatabaseError(f"database disk image is malformed ({result})")


def _prepare(connection: sqlite3.Connection) -> None:
    if _number(connection, "application_id") == APPLICATION_ID:
        return
    with transaction(connection):  # the two numbers are in the file's first page, so they are part of it
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])
