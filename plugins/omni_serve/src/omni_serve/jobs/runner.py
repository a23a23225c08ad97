"""Runs jobs: some at a time, in the order in which they were made, each until its end is recorded."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from omni_core.log import get_logger
from omni_core.serial_thread import SerialThread
from omni_serve.jobs.errors import JobFailed, JobStoreError, StoreFullError
from omni_serve.jobs.files import FileContent
from omni_serve.jobs.job import Job, JobKind
from omni_serve.jobs.news import JobNews, TellOfJob, tell_nobody
from omni_serve.jobs.records import MOST_ATTEMPTS
from omni_serve.jobs.store import JobStore
from omni_serve.tasks import end_tasks

T = TypeVar("T")
Results = Mapping[str, tuple[str, FileContent]]
Execute = Callable[[Job, Callable[[int], None]], Awaitable[Results]]

log = get_logger(__name__)

# Seconds that cancelled jobs get to end, before closing goes on without them.
_CANCEL_S = 10.0
# What clients are told; the log has the rest, with paths and tracebacks.
_BROKEN = JobFailed(
    "server_error", "The server had an error while it made this. Its log says more, under the job's id."
)
_NOT_STORED = JobFailed("server_error", "The result was made, but the server's disk did not take it. Try again later.")
_TOO_LARGE = JobFailed("storage_full", "The result has no room in the server's storage. Ask for a smaller one.")


@dataclass
class _Running:
    """A job that runs: what executes it, and the task that waits for this and records how it ended."""

    execution: asyncio.Task[Results]
    task: asyncio.Task[None]
    is_given_up: bool = False

    def cancel(self) -> None:
        """Abort the execution, if it has not ended; a result that is being recorded is still recorded."""
        self.is_given_up = True
        self.execution.cancel()


class JobRunner:
    """Owns the running jobs, in one event loop, and makes all changes to the store while it is open.

    The store is called in a thread of the runner's own, one call after another. Others may call `get`, `list` and the
    paths of the store from any thread; what changes jobs goes through the runner.

    Args:
        store: The store, which the caller closes after `aclose`.
        execute: Makes the results of one job, by name: media type, and bytes or a path. It gets the job and a function
            to call with the percent that are done, from any thread. It ends a job as failed with `JobFailed`; any other
            exception is logged, and the job fails with the code `server_error`. It is cancelled when the job is deleted
            or the server stops, and then has to end soon.
        limit: How many jobs run at a time.
        expire_every_s: Seconds between two looks for what has expired, and between two attempts where the disk fails.
        most_attempts: Times that a job is begun of which the server dies, before it fails.
        on_change: Is told, in the event loop, of each job that is in another state: its id, the state, and the number
            of jobs by state. The id is None when the server starts.
    """

    def __init__(
        self,
        store: JobStore,
        execute: Execute,
        limit: int,
        *,
        expire_every_s: float = 60.0,
        most_attempts: int = MOST_ATTEMPTS,
        on_change: TellOfJob = tell_nobody,
    ) -> None:
        if limit < 1:
            raise ValueError(f"limit = {limit}: at least one job has to run")
        self._store = store
        self._execute = execute
        self._limit = limit
        self._expire_every_s = expire_every_s
        self._most_attempts = most_attempts
        self._thread = SerialThread("omni-jobs")
        self._wake = asyncio.Event()
        self._running: dict[str, _Running] = {}
        self._unrecorded: dict[str, JobFailed] = {}  # failures that the disk did not take
        self._begin_tasks: tuple[asyncio.Task[None], ...] = ()
        self._house_tasks: tuple[asyncio.Task[None], ...] = ()
        self._news = JobNews(lambda: self._call(store.counts), on_change)

    @property
    def num_running(self) -> int:
        """How many jobs run now."""
        return len(self._running)

    async def start(self) -> None:
        """Queue what an earlier server left unfinished, and begin.

        Raises:
            JobStoreError: The store cannot be written.
        """
        count = await self._call(self._store.requeue_unfinished, self._most_attempts)
        if count:
            log.info("jobs that ran when the server ended begin again", count=count)
        self._begin_tasks = (asyncio.create_task(self._begin_jobs()),)
        self._house_tasks = (asyncio.create_task(self._keep_house()), asyncio.create_task(self._news.run()))
        self._news.note(None, "")

    async def add(
        self,
        kind: JobKind,
        model: str,
        request: Mapping[str, Any],
        *,
        uploads: Mapping[str, bytes] | None = None,
        idempotency: tuple[str, str] | None = None,
        remixed_from: str | None = None,
    ) -> tuple[Job, bool]:
        """Add a job, which is begun when its turn comes.

        Arguments, result and errors are those of `JobStore.create`. A caller that is cancelled may have added the job
        or not; the same Idempotency-Key finds out.
        """
        options = {"uploads": uploads, "idempotency": idempotency, "remixed_from": remixed_from}
        try:
            job, is_new = await self._call(self._store.create, kind, model, request, **options)
        finally:
            self._wake.set()  # after a cancelled call too: the thread looks for jobs after that call
        if is_new:
            self._news.note(job.id, job.status)
        if is_new and uploads:
            await self._expire()  # they count for the cap
        return job, is_new

    async def delete(self, job_id: str) -> bool:
        """Remove a job and its files. If it runs it is cancelled, and its place is free as soon as it has ended.

        Returns:
            Whether there was such a job.

        Raises:
            JobStoreError: It could not be removed. It goes on.
        """
        # A job that the thread took before this call has been put into `_running` before this goes on.
        existed = await self._call(self._store.delete, job_id)
        self._unrecorded.pop(job_id, None)
        if existed:
            self._news.note(job_id, "deleted")
        if existed and (running := self._running.get(job_id)) is not None:
            running.cancel()
        return existed

    async def drain(self, timeout_s: float) -> None:
        """Begin no more jobs, wait for those that run, and then cancel them. They begin again at the next start.

        Args:
            timeout_s: Seconds to wait before they are cancelled.
        """
        # A job that is taken at this moment is in progress, and begins at the next start.
        await end_tasks(*self._begin_tasks)
        if await self._have_ended(timeout_s):
            return
        for running in self._running.values():
            running.cancel()
        if not await self._have_ended(_CANCEL_S):
            log.warning("jobs did not end when they were cancelled", jobs=list(self._running))

    async def aclose(self) -> None:
        """Cancel what still runs, and end all tasks and the thread. May be called again."""
        await self.drain(0)
        await end_tasks(*self._house_tasks, *(running.task for running in self._running.values()))
        if self._thread.is_alive:
            with contextlib.suppress(JobStoreError):  # the next start queues them
                await self._call(self._store.give_back)
        await asyncio.to_thread(self._thread.close, _CANCEL_S)

    async def _begin_jobs(self) -> None:
        """Begin jobs while there are places, and otherwise wait until something changes."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                jobs = await self._call(self._store.take, self._limit - len(self._running))
            except Exception as error:
                log.error("no job can be begun; this is tried again", reason=str(error), after_s=self._expire_every_s)
                continue
            for job in jobs:
                self._news.note(job.id, job.status)
                execution = asyncio.create_task(self._make(job))
                self._running[job.id] = _Running(execution, asyncio.create_task(self._record(job.id, execution)))

    async def _make(self, job: Job) -> Results:
        return await self._execute(job, functools.partial(self._store.note_progress, job.id))

    async def _record(self, job_id: str, execution: asyncio.Task[Results]) -> None:
        """Wait for the end of a job and record it; nothing is recorded of one that was given up."""
        try:
            await asyncio.wait([execution])
            failure = self._failure(job_id, execution)
            if failure is None and not self._was_given_up(job_id, execution):
                failure = await self._complete(job_id, execution.result())
            if failure is not None:
                await self._fail(job_id, failure)
            await self._expire()
        finally:
            del self._running[job_id]
            self._wake.set()

    def _was_given_up(self, job_id: str, execution: asyncio.Task[Results]) -> bool:
        ended_early = execution.cancelled() or execution.exception() is not None
        return ended_early and self._running[job_id].is_given_up

    def _failure(self, job_id: str, execution: asyncio.Task[Results]) -> JobFailed | None:
        """Return how the execution failed; None if it did not, or if that is because the job was given up."""
        if self._was_given_up(job_id, execution):
            return None
        error = asyncio.CancelledError() if execution.cancelled() else execution.exception()
        if error is None or isinstance(error, JobFailed):
            return error
        log.error("a job failed", job=job_id, exc_info=error)
        return _BROKEN

    async def _complete(self, job_id: str, results: Results) -> JobFailed | None:
        """Store the results; return why that failed, or None."""
        try:
            job = await self._call(self._store.complete, job_id, results)
        except Exception as error:
            log.error("the result of a job could not be stored", job=job_id, reason=str(error))
            if isinstance(error, StoreFullError):
                return _TOO_LARGE
            return _NOT_STORED if isinstance(error, JobStoreError) else _BROKEN
        self._note(job)
        return None

    async def _fail(self, job_id: str, failure: JobFailed) -> None:
        try:
            self._note(await self._call(self._store.fail, job_id, failure.code, failure.message))
        except Exception as error:
            log.error("the failure of a job could not be recorded; this is tried again", job=job_id, reason=str(error))
            self._unrecorded[job_id] = failure

    async def _keep_house(self) -> None:
        """Remove what has expired, and try again what the disk did not take, now and from time to time."""
        while True:
            await self._expire()
            for job_id, failure in list(self._unrecorded.items()):
                del self._unrecorded[job_id]
                await self._fail(job_id, failure)
            self._wake.set()
            await asyncio.sleep(self._expire_every_s)

    async def _expire(self) -> None:
        try:
            for job_id in await self._call(self._store.expire):
                self._news.note(job_id, "expired")
        except JobStoreError as error:
            log.error("expired jobs could not be removed; this is tried again", reason=str(error))

    def _note(self, job: Job | None) -> None:
        """Tell of a job that has ended; None is one that was deleted meanwhile, of which was told."""
        if job is not None:
            self._news.note(job.id, job.status)

    async def _have_ended(self, timeout_s: float) -> bool:
        """Wait until no job runs, for so many seconds; return whether none does."""
        tasks = [running.task for running in self._running.values()]
        return not tasks or not (await asyncio.wait(tasks, timeout=timeout_s))[1]

    async def _call(self, function: Callable[..., T], /, *args: Any, **options: Any) -> T:
        return await asyncio.wrap_future(self._thread.submit(function, *args, **options))
