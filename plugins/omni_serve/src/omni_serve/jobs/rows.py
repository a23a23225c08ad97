"""Jobs as rows of the database. Each function takes part in whatever transaction its caller has begun."""

from __future__ import annotations

import json
import sqlite3
from typing import Literal, get_args

from omni_serve.jobs.job import Job, JobError, JobKind, JobStatus, StoredFile
from omni_serve.jobs.progress import Progress

Order = Literal["asc", "desc"]

# Conditions in SQL.
UNFINISHED = "status IN ('queued', 'in_progress')"
ENDED = "status IN ('completed', 'failed')"


def to_job(row: sqlite3.Row, progress: Progress) -> Job:
    """Make a job of a row.

    Args:
        row: The row.
        progress: How far those are that are running.
    """
    status = row["status"]
    return Job(
        id=row["id"],
        kind=row["kind"],
        status=status,
        progress=100 if status == "completed" else progress.of(row["id"]) if status == "in_progress" else 0,
        model=row["model"],
        request=json.loads(row["request"]),
        uploads=tuple(json.loads(row["uploads"])),
        files=tuple(StoredFile(*fields) for fields in json.loads(row["files"])),
        error=None if row["error"] is None else JobError(*json.loads(row["error"])),
        created_at=row["created_at"],
        completed_at=row["completed_at"],
        expires_at=row["expires_at"],
        remixed_from=row["remixed_from"],
    )


def find(database: sqlite3.Connection, job_id: str) -> sqlite3.Row | None:
    """Return the row of a job, or None if there is none."""
    row: sqlite3.Row | None = database.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
    return row


def is_running(database: sqlite3.Connection, job_id: str) -> bool:
    """Return whether a job is there and in progress."""
    row = find(database, job_id)
    return row is not None and row["status"] == "in_progress"


def insert(database: sqlite3.Connection, job: Job, request: str, stored_bytes: int) -> None:
    """Add a queued job.

    Args:
        database: Where to.
        job: The job.
        request: Its request as JSON, in ASCII: half of a surrogate pair, which JSON allows, is no text for SQLite.
        stored_bytes: Size of its uploads together.
    """
    database.execute(
        "INSERT INTO jobs (id, kind, status, model, request, uploads, files, stored_bytes, created_at, remixed_from)"
        " VALUES (?, ?, 'queued', ?, ?, ?, '[]', ?, ?, ?)",
        (
            job.id,
            job.kind,
            job.model,
            request,
            json.dumps(job.uploads),
            stored_bytes,
            job.created_at,
            job.remixed_from,
        ),
    )


def page(
    database: sqlite3.Connection, kind: JobKind | None, after: sqlite3.Row | None, count: int, order: Order
) -> list[sqlite3.Row]:
    """Return rows in the order in which the jobs were made, or the reverse of it.

    Args:
        database: Where from.
        kind: Jobs of this kind alone; None for all.
        after: The row before the first one; None to begin with the first of all.
        count: How many at most.
        order: `asc` for the oldest first.
    """
    conditions, values = ["1"], list[object]()
    if kind is not None:
        conditions.append("kind = ?")
        values.append(kind)
    if after is not None:
        conditions.append("seq > ?" if order == "asc" else "seq < ?")
        values.append(after["seq"])
    direction = "ASC" if order == "asc" else "DESC"
    return database.execute(
        f"SELECT * FROM jobs WHERE {' AND '.join(conditions)} ORDER BY seq {direction} LIMIT ?",  # noqa: S608  # no value in it
        (*values, count),
    ).fetchall()


def oldest_queued(database: sqlite3.Connection, count: int) -> list[str]:
    """Return the ids of the jobs that are next, at most `count`: those of a larger priority first."""
    priority = "coalesce(json_extract(request, '$.priority'), 0)"
    rows = database.execute(
        f"SELECT id FROM jobs WHERE status = 'queued' ORDER BY {priority} DESC, seq LIMIT ?",  # noqa: S608  # no value in it
        (count,),
    )
    return [row["id"] for row in rows]


def begin(database: sqlite3.Connection, job_id: str) -> bool:
    """Let a queued job be in progress; return whether it was queued."""
    changed = database.execute(
        "UPDATE jobs SET status = 'in_progress', attempts = attempts + 1 WHERE id = ? AND status = 'queued'", (job_id,)
    )
    return changed.rowcount == 1


def begun_too_often(database: sqlite3.Connection, most_attempts: int) -> list[str]:
    """Return the ids of the jobs in progress that have been begun so often."""
    rows = database.execute(
        "SELECT id FROM jobs WHERE status = 'in_progress' AND attempts >= ? ORDER BY seq", (most_attempts,)
    )
    return [row["id"] for row in rows]


def requeue(database: sqlite3.Connection, *, is_attempt: bool) -> int:
    """Let all jobs in progress be queued; return how many. They keep their places, before those that came later.

    Args:
        database: Where.
        is_attempt: Whether their last beginning counts as one.
    """
    return database.execute(
        "UPDATE jobs SET status = 'queued', attempts = attempts - ? WHERE status = 'in_progress'", (not is_attempt,)
    ).rowcount


def num_unfinished(database: sqlite3.Connection) -> int:
    """Return how many jobs are queued or in progress."""
    return int(database.execute(f"SELECT count(*) FROM jobs WHERE {UNFINISHED}").fetchone()[0])  # noqa: S608  # no value in it


def counts(database: sqlite3.Connection) -> dict[str, int]:
    """Return how many jobs there are in each state, those with none among them."""
    found = database.execute("SELECT status, count(*) FROM jobs GROUP BY status").fetchall()
    return {**dict.fromkeys(get_args(JobStatus), 0), **{status: int(number) for status, number in found}}


def complete(
    database: sqlite3.Connection, job_id: str, files: list[StoredFile], now: int, expires_at: int | None
) -> None:
    """Record the results of a job that is in progress.

    Args:
        database: Where to.
        job_id: The job.
        files: Its results.
        now: Unix time in seconds.
        expires_at: When it is removed, likewise; None for never.
    """
    database.execute(
        "UPDATE jobs SET status = 'completed', files = ?, stored_bytes = stored_bytes + ?, completed_at = ?,"
        " expires_at = ? WHERE id = ?",
        (
            json.dumps([[file.name, file.media_type, file.size_bytes] for file in files]),
            sum(file.size_bytes for file in files),
            now,
            expires_at,
            job_id,
        ),
    )


def fail(database: sqlite3.Connection, job_id: str, error: JobError, now: int, expires_at: int | None) -> bool:
    """Record that a job failed; return whether it was there and had not ended."""
    changed = database.execute(
        f"UPDATE jobs SET status = 'failed', error = ?, completed_at = ?, expires_at = ? WHERE id = ? AND {UNFINISHED}",  # noqa: S608  # no value in it
        (json.dumps([error.code, error.message]), now, expires_at, job_id),
    )
    return changed.rowcount == 1


def delete(database: sqlite3.Connection, job_id: str) -> bool:
    """Remove a job, and its Idempotency-Key with it; return whether it was there."""
    return database.execute("DELETE FROM jobs WHERE id = ?", (job_id,)).rowcount == 1
