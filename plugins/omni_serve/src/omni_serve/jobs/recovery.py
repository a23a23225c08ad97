"""What is set right when a store is opened, after a server that may have been killed at any point."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any

from omni_core.log import get_logger
from omni_serve.jobs.database import transaction
from omni_serve.jobs.files import Group, JobFiles

log = get_logger(__name__)

_FAIL = (
    "UPDATE jobs SET status = 'failed', error = ?, files = '[]', stored_bytes = ?,"
    " completed_at = coalesce(completed_at, ?), expires_at = coalesce(expires_at, ?) WHERE id = ?"
)


def recover(database: sqlite3.Connection, files: JobFiles, now: int, expires_at: int | None) -> None:
    """Make rows and files agree.

    - Files that no row names are removed: of a job whose row was not yet written or is already deleted, or results
      whose job was not yet recorded as completed. Such a job is in progress and will be done again.
    - A completed job whose results are not all there any more fails, with a message. It is not done again: that a job
      recorded as completed never runs twice then holds without exception, and the client may have fetched the results
      long ago. omni itself removes the row before the files, so somebody else removed them.
    - A job that has not ended, and whose uploads are gone, fails too: it cannot be done.

    Args:
        database: The rows.
        files: The files.
        now: Unix time in seconds.
        expires_at: When a job that fails now is removed, likewise; None for never.

    Raises:
        sqlite3.Error: The database cannot be read or written.
        OSError: The folders cannot be read.
    """
    known: dict[str, Mapping[Group, frozenset[str]]] = {}
    with transaction(database):
        for row in database.execute("SELECT id, status, uploads, files FROM jobs").fetchall():
            job_id, uploads, outputs = row["id"], json.loads(row["uploads"]), json.loads(row["files"])
            lost = _lost(files, row["status"], job_id, uploads, outputs)
            if lost is not None:
                log.warning("a job fails, since a file of it is gone", job=job_id, file=lost)
                kept = sum(files.size(job_id, "uploads", name) or 0 for name in uploads)
                error = ["file_missing", f"Its file {lost} was removed from the server's disk."]
                database.execute(_FAIL, (json.dumps(error), kept, now, expires_at, job_id))
                outputs = []
            known[job_id] = {"uploads": frozenset(uploads), "outputs": frozenset(name for name, _, _ in outputs)}
    removed = files.sweep(known)
    if removed:
        log.info("removed what unfinished writing had left", count=removed)


def _lost(files: JobFiles, status: str, job_id: str, uploads: Iterable[str], outputs: Iterable[Any]) -> str | None:
    """Return the name of a file that is needed and not there as it was, or None."""
    if status == "completed":
        return next((name for name, _, size in outputs if files.size(job_id, "outputs", name) != size), None)
    if status == "failed":
        return None
    return next((name for name in uploads if files.size(job_id, "uploads", name) is None), None)
