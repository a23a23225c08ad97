"""Jobs as the endpoints use them: everything is awaited, and nothing waits for the disk in the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, TypeVar

from omni_serve.jobs.errors import JobNotFoundError
from omni_serve.jobs.job import Job, JobKind
from omni_serve.jobs.news import TellOfJob, tell_nobody
from omni_serve.jobs.rows import Order
from omni_serve.jobs.runner import Execute, JobRunner
from omni_serve.jobs.store import JobStore
from omni_serve.threads import thread_pool

T = TypeVar("T")

_READERS = 2


class KeptJobs(JobRunner):
    """A runner of jobs that also reads them, in threads besides the one that writes.

    Args:
        store: The store, which stays the caller's to close.
        execute: Makes the files of a job; see `JobRunner`.
        limit: How many run at a time.
        on_change: Is told of changes; see `JobRunner`.
    """

    def __init__(self, store: JobStore, execute: Execute, limit: int, on_change: TellOfJob = tell_nobody) -> None:
        super().__init__(store, execute, limit, on_change=on_change)
        self._readers = thread_pool(_READERS, "omni-serve-jobs")

    async def keep(
        self, kind: JobKind, model: str, request: Mapping[str, Any], files: Mapping[str, tuple[str, bytes]]
    ) -> Job:
        """Keep files that are made already: see `JobStore.keep`."""
        job = await self._call(self._store.keep, kind, model, request, files)
        self._news.note(job.id, job.status)
        await self._expire()  # they count for the cap
        return job

    async def get(self, job_id: str) -> Job | None:
        """Return a job; None if there is none."""
        return await self._in_thread(self._store.get, job_id)

    async def list(self, kind: JobKind, after: str | None, limit: int, order: Order) -> tuple[tuple[Job, ...], bool]:
        """Return jobs, and whether there are more."""
        return await self._in_thread(self._store.list, kind, after, limit, order)

    async def open(self, job: Job, name: str) -> tuple[BinaryIO, str]:
        """Open a result, which stays the caller's to close; return its media type too.

        Raises:
            JobNotFoundError: There is none of that name, or the job was removed meanwhile.
        """
        kinds = {file.name: file.media_type for file in job.files}
        opened = await self._in_thread(_unless_removed, job, lambda: self._store.path_of(job, name).open("rb"))
        return opened, kinds[name]

    async def upload(self, job: Job, name: str) -> bytes:
        """Return a file that came with a job.

        Raises:
            JobNotFoundError: The job was removed meanwhile.
        """
        return await self._in_thread(_unless_removed, job, lambda: self._store.upload_path_of(job, name).read_bytes())

    async def aclose(self) -> None:
        """End all tasks and threads."""
        await super().aclose()
        self._readers.shutdown(wait=True, cancel_futures=True)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, function, *arguments)


def _unless_removed(job: Job, read: Callable[[], T]) -> T:
    try:
        return read()
    except FileNotFoundError as error:
        raise JobNotFoundError(f"The job {job.id} was deleted, or expired.") from error
