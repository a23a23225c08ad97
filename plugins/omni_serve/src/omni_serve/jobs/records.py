"""The part of the job store that needs no files: asking for jobs, beginning them, their progress and their failure."""

from __future__ import annotations

import contextlib
import math
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from omni_serve.jobs import rows
from omni_serve.jobs.database import transaction
from omni_serve.jobs.errors import JobNotFoundError, JobStoreError, storage_errors
from omni_serve.jobs.job import Job, JobError, JobKind
from omni_serve.jobs.progress import Progress
from omni_serve.jobs.rows import Order

# Times that a job is begun: a server may die for other reasons, but hardly so often.
MOST_ATTEMPTS = 5


class JobRecords:
    """Jobs as rows. All methods may be called from any thread: there is one connection, behind a lock.

    Args:
        database: The connection, which belongs to this object from now on.
        folder: What errors name.
        expires_after_s: Seconds after its end at which a job is removed; None keeps it.
        clock: Gives the Unix time in seconds.
    """

    def __init__(
        self, database: sqlite3.Connection, folder: Path, expires_after_s: float | None, clock: Callable[[], float]
    ) -> None:
        self._database = database
        self._path = folder
        self._expires_after_s = expires_after_s
        self._clock = clock
        self._lock = threading.RLock()
        self._progress = Progress()
        self._is_closed = False

    def get(self, job_id: str) -> Job | None:
        """Return a job as it is now, or None if there is none of that id.

        Raises:
            JobStoreError: The database cannot be read.
        """
        with self._reading() as database:
            row = rows.find(database, job_id)
            return None if row is None else self._job(row)

    def list(
        self, kind: JobKind | None = None, after: str | None = None, limit: int = 20, order: Order = "desc"
    ) -> tuple[tuple[Job, ...], bool]:
        """Return some jobs in the order in which they were made, which also orders those of the same second.

        Args:
            kind: Jobs of this kind alone; None for all.
            after: Id of the job before the first one; None begins with the first of all.
            limit: How many at most.
            order: `asc` for the oldest first, `desc` for the newest.

        Returns:
            The jobs, and whether there are more after them.

        Raises:
            JobNotFoundError: There is no job `after`, of that kind.
            JobStoreError: The database cannot be read.
            ValueError: A negative limit.
        """
        if limit < 0:
            raise ValueError(f"limit = {limit}: give 0 or more")
        with self._reading() as database:
            before = None
            if after is not None:
                before = rows.find(database, after)
                if before is None or kind not in (None, before["kind"]):
                    raise JobNotFoundError(f"there is no job {after!r} to list after. It was deleted, or expired.")
            found = rows.page(database, kind, before, limit + 1, order)
            return tuple(self._job(row) for row in found[:limit]), len(found) > limit

    def take(self, limit: int = 1) -> tuple[Job, ...]:
        """Begin the jobs that have waited longest. No job is given to two callers.

        Args:
            limit: How many at most.

        Returns:
            The jobs, now in progress, in the order in which they were made.

        Raises:
            JobStoreError: They cannot be begun; all stay queued.
        """
        with self._reading() as database:  # no transaction, with its sync, where nothing waits
            if limit <= 0 or not rows.oldest_queued(database, 1):
                return ()
            with transaction(database):
                return tuple(job for job_id in rows.oldest_queued(database, limit) if (job := self._begin(job_id)))

    def begin(self, job_id: str) -> Job | None:
        """Begin one job.

        Returns:
            The job, now in progress, or None if it is not queued (any more).

        Raises:
            JobStoreError: It cannot be begun.
        """
        with self._writing():
            return self._begin(job_id)

    def note_progress(self, job_id: str, percent: float) -> None:
        """Remember how far a running job is; less than before, or of a job that is not running, changes nothing.

        This is the one method that does not wait for the disk: progress is kept in memory and never written, since
        after a restart the job begins anew.

        Args:
            job_id: The job.
            percent: From 0 to 100.
        """
        self._progress.note(job_id, percent)

    def fail(self, job_id: str, code: str, message: str) -> Job | None:
        """Record that a job failed.

        Args:
            job_id: The job.
            code: A short name for programs.
            message: For people.

        Returns:
            The job, or None if it is not there or has ended before.

        Raises:
            JobStoreError: It cannot be recorded. The job is unchanged.
        """
        now = int(self._clock())
        with self._writing() as database:
            if not rows.fail(database, job_id, JobError(code, message), now, self._expiry(now)):
                return None
            job = self._job(rows.find(database, job_id))
        self._progress.end(job_id)
        return job

    def requeue_unfinished(self, most_attempts: int = MOST_ATTEMPTS) -> int:
        """Queue the jobs that were running when the server died, before all that came later. For its start alone.

        A job that has been begun `most_attempts` times fails instead: it may be what the server dies of.

        Returns:
            How many were queued.

        Raises:
            JobStoreError: It cannot be recorded.
        """
        now = int(self._clock())
        error = JobError("server_died", f"The server died {most_attempts} times while it did this job.")
        with self._writing() as database:
            for job_id in rows.begun_too_often(database, most_attempts):
                rows.fail(database, job_id, error, now, self._expiry(now))
            count = rows.requeue(database, is_attempt=True)
        self._progress.clear()
        return count

    def give_back(self) -> int:
        """Queue the jobs that are running, as if they had not been begun. For the end of a server that is not killed.

        Returns:
            How many there were.

        Raises:
            JobStoreError: It cannot be recorded. The next start queues them.
        """
        with self._writing() as database:
            count = rows.requeue(database, is_attempt=False)
        self._progress.clear()
        return count

    def num_unfinished(self) -> int:
        """Return how many jobs are queued or in progress.

        Raises:
            JobStoreError: The database cannot be read.
        """
        with self._reading() as database:
            return rows.num_unfinished(database)

    def counts(self) -> dict[str, int]:
        """Return how many jobs there are in each state.

        Raises:
            JobStoreError: The database cannot be read.
        """
        with self._reading() as database:
            return rows.counts(database)

    def close(self) -> None:
        """Close the database. May be called again; what is called afterwards raises `JobStoreError`."""
        with self._lock:
            self._is_closed = True
            with storage_errors(self._path):
                self._database.close()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Give the connection to this thread alone, for as long as the block takes."""
        with self._lock, storage_errors(self._path):
            if self._is_closed:
                raise JobStoreError(f"the jobs in {self._path} cannot be reached: the store is closed.")
            yield self._database

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Do the same, in a transaction that is committed at the end of the block."""
        with self._reading() as database, transaction(database):
            yield database

    def _begin(self, job_id: str) -> Job | None:
        """Begin a job if it is queued. Within a transaction."""
        if not rows.begin(self._database, job_id):
            return None
        self._progress.begin(job_id)
        return self._job(rows.find(self._database, job_id))

    def _job(self, row: sqlite3.Row | None) -> Job:
        assert row is not None, "the row was found or written in this transaction"
        return rows.to_job(row, self._progress)

    def _expiry(self, now: int) -> int | None:
        """Return when a job is removed that ends now."""
        return None if self._expires_after_s is None else math.ceil(now + self._expires_after_s)
