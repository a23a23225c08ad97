"""Which jobs have been kept long enough, and which files have no room."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from omni_serve.jobs import rows
from omni_serve.jobs.errors import StoreFullError


def take_expired(database: sqlite3.Connection, now: float, max_bytes: int | None) -> list[str]:
    """Remove the rows of jobs whose time is over, and of as many more as the cap in bytes asks for.

    Only jobs that have ended are removed. For the cap those that ended first go first, and only those that have files.

    Args:
        database: The rows.
        now: Unix time in seconds.
        max_bytes: Most bytes of all files together; None for no cap.

    Returns:
        Ids of the jobs whose rows were removed; their files are still there.
    """
    ended = f"SELECT id, stored_bytes FROM jobs WHERE {rows.ENDED}"  # noqa: S608  # no value in it
    expired = [row["id"] for row in database.execute(f"{ended} AND expires_at <= ? ORDER BY seq", (now,))]
    for job_id in expired:
        rows.delete(database, job_id)
    excess = 0 if max_bytes is None else _stored_bytes(database) - max_bytes
    if excess <= 0:
        return expired
    for row in database.execute(f"{ended} AND stored_bytes > 0 ORDER BY completed_at, seq").fetchall():
        rows.delete(database, row["id"])
        expired.append(row["id"])
        excess -= row["stored_bytes"]
        if excess <= 0:
            break
    return expired


def check_room(database: sqlite3.Connection, folder: Path, max_bytes: int | None, num_bytes: int) -> None:
    """Refuse files for which no removing of jobs that have ended would make room.

    Without this a result could be larger than the cap, and would be removed before anyone could fetch it.

    Args:
        database: The rows.
        folder: What the error names.
        max_bytes: Most bytes of all files together; None for no cap.
        num_bytes: Size of the new files together.

    Raises:
        StoreFullError: They do not fit.
    """
    if max_bytes is None:
        return
    kept = _stored_bytes(database, f"WHERE {rows.UNFINISHED}")
    if kept + num_bytes > max_bytes:
        raise StoreFullError(
            f"{num_bytes} bytes do not fit into {folder}: jobs that have not ended hold {kept} of {max_bytes} bytes. "
            "Try again when they have ended, or raise the cap in bytes."
        )


def _stored_bytes(database: sqlite3.Connection, where: str = "") -> int:
    return int(database.execute(f"SELECT coalesce(sum(stored_bytes), 0) FROM jobs {where}").fetchone()[0])  # noqa: S608  # no value in it
