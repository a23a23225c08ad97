"""What can go wrong with jobs, and what the messages advise."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from omni_core.errors import OmniError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class JobStoreError(OmniError):
    """Jobs cannot be stored or read; the message names the folder and says what to do."""


class StoreFullError(JobStoreError):
    """A job would take the store beyond its cap in bytes, and nothing that could be removed for it would suffice."""


class QueueFullError(JobStoreError):
    """As many jobs as may wait have not ended."""


class IdempotencyError(OmniError):
    """An Idempotency-Key was used before, with another request."""


class JobNotFoundError(OmniError):
    """There is no job of that id: there never was, or it was deleted, or it expired."""


class JobFailed(Exception):
    """Raised by what executes a job, to end the job as failed.

    Args:
        code: A short name for programs, as in `error.code` of the API.
        message: What happened and what to do, for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


@contextlib.contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the disk and of SQLite that are raised in the block into `JobStoreError`.

    Args:
        folder: The folder that the message names.

    Raises:
        JobStoreError: Instead of an `OSError` or `sqlite3.Error`, which is its cause.
    """
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise JobStoreError(_explain(error, folder)) from error


def is_full(error: JobStoreError) -> bool:
    """Return whether an error means that the disk is full."""
    cause = error.__cause__
    return isinstance(cause, (OSError, sqlite3.Error)) and _is_full(cause)


def _is_full(error: OSError | sqlite3.Error) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL
    return "disk is full" in str(error) or "disk I/O error" in str(error)


def _explain(error: OSError | sqlite3.Error, folder: Path) -> str:
    what = f"jobs cannot be kept in {folder}: {error}"
    if isinstance(error, OSError):
        if _is_full(error):
            return f"{what}. Free space there, delete jobs, or lower the cap in bytes."
        if error.errno in _FORBIDDEN:
            return f"{what}. Let this user write there, or name another folder (--data-dir)."
        return f"{what}. Name a folder on a local disk that this user can write (--data-dir)."
    text = str(error)
    if _is_full(error):
        return f"{what}. Free space there, or look at the system's log if there is enough."
    if "readonly" in text or "unable to open" in text:
        return f"{what}. Let this user write there, or name another folder (--data-dir)."
    if "locked" in text:
        return f"{what}. Another program has the database open and is writing to it; end that program."
    if "not a database" in text or "malformed" in text:
        return f"{what}. The database is damaged: move this folder away, and the server starts without its jobs."
    return f"{what}."
