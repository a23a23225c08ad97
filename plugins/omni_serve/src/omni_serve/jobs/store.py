"""Jobs that last: rows in SQLite, files beside them."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from omni_serve.jobs import idempotency as keys
from omni_serve.jobs import rows
from omni_serve.jobs.capacity import check_room, take_expired
from omni_serve.jobs.database import empty_log, open_database
from omni_serve.jobs.errors import JobNotFoundError, JobStoreError, QueueFullError, is_full, storage_errors
from omni_serve.jobs.files import FileContent, JobFiles, size_of
from omni_serve.jobs.folder import JobFolder
from omni_serve.jobs.idempotency import IdempotencyKey
from omni_serve.jobs.job import Job, JobKind, StoredFile, new_id
from omni_serve.jobs.records import JobRecords
from omni_serve.jobs.recovery import recover
from omni_serve.jobs.reserve import Reserve

T = TypeVar("T")

DAY_S = 24 * 3600


class JobStore(JobRecords):
    """Keeps jobs and their files. All methods block, and may be called from any thread, also at the same time.

    Files are written outside the lock of the database, so that a large result holds up nobody who asks for a job. They
    come before the row that names them and go after it: a row never names a file that is not there whole, and a file
    that no row names is removed when the store is opened.

    Args:
        data_dir: Where to keep them, in a subfolder `jobs`. One store at a time can be open there. None keeps rows in
            memory and files in a temporary folder, until the store is closed.
        expires_after_s: Seconds after its end at which a job is removed; None keeps it.
        max_unfinished: Most jobs that have not ended; None for no cap.
        max_bytes: Most bytes of all files together, to which `expire` returns; None for no cap.
        clock: Gives the Unix time in seconds.

    Raises:
        JobStoreError: The folder cannot be used; the message says what to do.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        expires_after_s: float | None = DAY_S,
        max_bytes: int | None = None,
        max_unfinished: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = JobFolder(data_dir)
        self._max_bytes = max_bytes
        self._max_unfinished = max_unfinished
        self._files = JobFiles(self._folder.files, self._folder.is_durable)
        self._completing: set[str] = set()
        self._is_open = False
        self._reserve = Reserve(self._folder.path if self._folder.is_durable else None)
        try:
            database = self._though_full(self._open)
        except BaseException:
            self._folder.close()
            raise
        super().__init__(database, self._folder.path, expires_after_s, clock)
        self._is_open = True
        try:
            self._though_full(self._recover)
            self._reserve.renew()
        except BaseException:
            self.close()
            raise

    @property
    def folder(self) -> Path:
        """Where the jobs are: `jobs` in the data directory, or a temporary folder."""
        return self._folder.path

    def create(
        self,
        kind: JobKind,
        model: str,
        request: Mapping[str, Any],
        *,
        uploads: Mapping[str, bytes] | None = None,
        idempotency: tuple[str, str] | None = None,
        remixed_from: str | None = None,
    ) -> tuple[Job, bool]:
        """Add a queued job. Once this returns it survives the end of the process and of the power.

        Args:
            kind: What it makes.
            model: The model that was asked for.
            request: What JSON can hold, with the seed.
            uploads: Files that came with the request, by plain names of the server's choice.
            idempotency: Idempotency-Key, and a digest of the request; the key is valid for 24 hours.
            remixed_from: Id of the job that this one changes.

        Returns:
            The job, and whether it is new: False if it was made before with the same key and digest.

        Raises:
            IdempotencyError: The key was used with another digest.
            QueueFullError: `max_unfinished` jobs have not ended.
            StoreFullError: The uploads, with those of other jobs that have not ended, take more than `max_bytes`.
            JobStoreError: The job cannot be stored. Nothing of it is kept.
            ValueError: A name is not plain, or the request is not JSON (also `TypeError`).
        """
        body = json.dumps(dict(request), allow_nan=False)
        files = dict(uploads or {})
        key = None if idempotency is None else IdempotencyKey(*idempotency)
        now = self._clock()
        job = Job(new_id(kind), kind, "queued", 0, model, {}, int(now), tuple(files), remixed_from=remixed_from)
        size = sum(map(len, files.values()))
        with self._reading() as database:
            known = self._admit(database, key, size, now)
        if known is not None:
            return known, False
        try:
            with storage_errors(self.folder):
                self._files.write(job.id, "uploads", files)
            with self._writing() as database:
                known = self._admit(database, key, size, now)  # another thread may have been faster
                if known is None:
                    rows.insert(database, job, body, size)
                    if key is not None:
                        keys.remember(database, key, job.id, now)
                    job = self._job(rows.find(database, job.id))
        except BaseException:
            self._files.remove(job.id)
            raise
        if known is not None:
            self._files.remove(job.id)
            return known, False
        return job, True

    def keep(
        self, kind: JobKind, model: str, request: Mapping[str, Any], files: Mapping[str, tuple[str, FileContent]]
    ) -> Job:
        """Store files that are made already, as a completed job, which expires as others do.

        Args:
            kind: What they are.
            model: The model that made them.
            request: What JSON can hold.
            files: By plain names: media type, and bytes or a file that is copied.

        Raises:
            StoreFullError: They take more than `max_bytes`, with what cannot be removed.
            JobStoreError: They cannot be stored. Nothing of them is kept.
            ValueError: A name is not plain.
        """
        body = json.dumps(dict(request), allow_nan=False)
        now = int(self._clock())
        job = Job(new_id(kind), kind, "queued", 0, model, {}, now)
        try:
            stored = self._write_results(job.id, files)
            with self._writing() as database:
                rows.insert(database, job, body, 0)
                return self._record(database, job.id, stored, now)
        except BaseException:
            self._files.remove(job.id)
            raise

    def delete(self, job_id: str) -> bool:
        """Remove a job and its files, whatever it is doing. Results of one that is running are then refused.

        Returns:
            Whether it was there.

        Raises:
            JobStoreError: It could not be removed.
        """
        existed = self._though_full(lambda: self._delete(job_id))
        self._progress.end(job_id)
        if existed:
            self._files.remove(job_id)
        return existed

    def complete(self, job_id: str, files: Mapping[str, tuple[str, FileContent]]) -> Job | None:
        """Store the results of a running job. Once this returns it is completed and never runs again.

        Args:
            job_id: The job.
            files: By plain names: media type, and bytes or a file that is copied.

        Returns:
            The job, or None if it is not in progress (any more), as when it was deleted; nothing is kept then.

        Raises:
            StoreFullError: The results, with what cannot be removed, take more than `max_bytes`. The job is unchanged.
            JobStoreError: They cannot be stored. The job is unchanged.
            ValueError: A name is not plain.
        """
        job = None
        with self._reading() as database:
            if not rows.is_running(database, job_id) or job_id in self._completing:
                return None
            self._completing.add(job_id)
        try:
            job = self._complete(job_id, files)
        except JobStoreError:
            if self.get(job_id) is not None:
                raise  # else it was deleted while its files were written, which is why that failed
        finally:
            if job is None:
                self._files.remove(job_id, "outputs")
            self._completing.discard(job_id)
        return job

    def expire(self, now: float | None = None) -> tuple[str, ...]:
        """Remove jobs whose time is over and, those that ended first, as many as `max_bytes` asks for.

        Args:
            now: Unix time in seconds; None for that of the clock.

        Returns:
            Ids of the jobs that were removed.

        Raises:
            JobStoreError: They could not be removed.
        """
        at = self._clock() if now is None else now
        expired = self._though_full(lambda: self._take_expired(at))
        for job_id in expired:
            self._files.remove(job_id)
        self._reserve.renew()
        return tuple(expired)

    def path_of(self, job: Job, name: str) -> Path:
        """Return where a result of a job is. It is there as long as the job is.

        Raises:
            JobNotFoundError: The job has no such result.
        """
        if name not in [file.name for file in job.files]:
            raise JobNotFoundError(f"the job {job.id} has no file {name!r}")
        return self._files.path(job.id, "outputs", name)

    def upload_path_of(self, job: Job, name: str) -> Path:
        """Return where a file is that came with the request of a job.

        Raises:
            JobNotFoundError: None of that name came with it.
        """
        if name not in job.uploads:
            raise JobNotFoundError(f"no file {name!r} came with the job {job.id}")
        return self._files.path(job.id, "uploads", name)

    def close(self) -> None:
        """Let another server use the folder; remove a temporary one. May be called again."""
        try:
            super().close()
        finally:
            self._folder.close()

    def _though_full(self, change: Callable[[], T]) -> T:
        """Do what makes space free, or begins to, also where the disk is too full to write that down."""
        try:
            return change()
        except JobStoreError as error:
            if not is_full(error):
                raise
        self._reserve.release()
        if self._is_open:
            with contextlib.suppress(JobStoreError), self._reading() as database:
                empty_log(database)
        return change()

    def _open(self) -> sqlite3.Connection:
        with storage_errors(self._folder.path):
            return open_database(self._folder.database if self._folder.is_durable else None)

    def _recover(self) -> None:
        now = int(self._clock())
        with self._reading() as database:
            recover(database, self._files, now, self._expiry(now))

    def _delete(self, job_id: str) -> bool:
        with self._writing() as database:
            return rows.delete(database, job_id)

    def _take_expired(self, now: float) -> list[str]:
        with self._writing() as database:
            keys.forget_old(database, now)
            return take_expired(database, now, self._max_bytes)

    def _complete(self, job_id: str, files: Mapping[str, tuple[str, FileContent]]) -> Job | None:
        stored = self._write_results(job_id, files)
        now = int(self._clock())
        with self._writing() as database:
            if not rows.is_running(database, job_id):
                return None
            job = self._record(database, job_id, stored, now)
        self._progress.end(job_id)
        return job

    def _write_results(self, job_id: str, files: Mapping[str, tuple[str, FileContent]]) -> list[StoredFile]:
        """Write the results of a job, if there is room for them; no row names them yet."""
        contents = {name: content for name, (_, content) in files.items()}
        with self._reading() as database:
            check_room(database, self.folder, self._max_bytes, sum(map(size_of, contents.values())))
        with storage_errors(self.folder):
            sizes = self._files.write(job_id, "outputs", contents)
        return [StoredFile(name, media_type, sizes[name]) for name, (media_type, _) in files.items()]

    def _record(self, database: sqlite3.Connection, job_id: str, stored: list[StoredFile], now: int) -> Job:
        """Record results that are written, unless others have taken their room meanwhile. Within a transaction."""
        check_room(database, self.folder, self._max_bytes, sum(file.size_bytes for file in stored))
        rows.complete(database, job_id, stored, now, self._expiry(now))
        return self._job(rows.find(database, job_id))

    def _admit(self, database: sqlite3.Connection, key: IdempotencyKey | None, size: int, now: float) -> Job | None:
        """Return the job that was made with this key; or None, if there is none and the uploads have room."""
        row = None if key is None else keys.find(database, key, now)
        if row is not None:
            return self._job(row)
        if self._max_unfinished is not None and rows.num_unfinished(database) >= self._max_unfinished:
            raise QueueFullError(f"{self._max_unfinished} jobs wait or are being done. Try again when some have ended.")
        check_room(database, self.folder, self._max_bytes, size)
        return None
