"""Idempotency-Keys: the same request with the same key makes no second job."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from omni_serve.jobs import rows
from omni_serve.jobs.errors import IdempotencyError

KEPT_S = 24 * 3600
"""How long a key is known, in seconds. It also goes when its job goes."""


@dataclass(frozen=True)
class IdempotencyKey:
    """A key and what it was sent with.

    Attributes:
        key: What the client sent. If clients must not see each other's jobs, the server puts who it was in front.
        digest: A digest of the whole request, equal if and only if the requests are.
    """

    key: str
    digest: str


def find(database: sqlite3.Connection, key: IdempotencyKey, now: float) -> sqlite3.Row | None:
    """Return the row of the job that was made with this key, or None if there is none.

    Args:
        database: Where to look.
        key: The key and the digest of the request.
        now: Unix time in seconds.

    Raises:
        IdempotencyError: The key was used with another request.
    """
    known = database.execute(
        "SELECT * FROM idempotency WHERE key = ? AND created_at > ?", (key.key, now - KEPT_S)
    ).fetchone()
    if known is None:
        return None
    if known["digest"] != key.digest:
        raise IdempotencyError(
            f"the Idempotency-Key {key.key!r} was used with another request in the last {KEPT_S // 3600} hours. "
            "Use a new key for each request, and the same one only to repeat it unchanged."
        )
    return rows.find(database, known["job"])


def remember(database: sqlite3.Connection, key: IdempotencyKey, job_id: str, now: float) -> None:
    """Keep a key; one of that name which is no longer valid is replaced."""
    database.execute(
        "INSERT OR REPLACE INTO idempotency (key, digest, job, created_at) VALUES (?, ?, ?, ?)",
        (key.key, key.digest, job_id, now),
    )


def forget_old(database: sqlite3.Connection, now: float) -> None:
    """Remove the keys that are no longer valid."""
    database.execute("DELETE FROM idempotency WHERE created_at <= ?", (now - KEPT_S,))
