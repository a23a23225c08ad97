"""Tells somebody of each change of a job, with how many jobs there are in each state."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from omni_core.log import get_logger
from omni_serve.jobs.errors import JobStoreError

log = get_logger(__name__)

# Called with the job, its new state, and the number of jobs by state.
TellOfJob = Callable[[str | None, str, Mapping[str, int]], None]


def tell_nobody(job_id: str | None, status: str, jobs: Mapping[str, int]) -> None:
    """Do nothing with a change."""


class JobNews:
    """Collects changes, in one event loop, and tells of them in a task of its own: nothing of a job waits for that.

    Args:
        count: Returns the number of jobs by state.
        tell: Is told of each change, in order. None as the job means that the server has started.
    """

    def __init__(self, count: Callable[[], Awaitable[Mapping[str, int]]], tell: TellOfJob) -> None:
        self._count = count
        self._tell = tell
        self._is_heard = tell is not tell_nobody
        self._noted: list[tuple[str | None, str]] = []
        self._wake = asyncio.Event()

    def note(self, job_id: str | None, status: str) -> None:
        """Take note of a change, of which `run` tells."""
        if self._is_heard:
            self._noted.append((job_id, status))
            self._wake.set()

    async def run(self) -> None:
        """Tell of changes until cancelled."""
        jobs: Mapping[str, int] = {}
        while True:
            await self._wake.wait()
            self._wake.clear()
            noted, self._noted = self._noted, []
            try:
                jobs = await self._count()  # after what was noted: the last of the changes is in it
            except JobStoreError as error:
                log.warning("the jobs cannot be counted; the last numbers are told again", reason=str(error))
            for job_id, status in noted:
                self._tell(job_id, status, jobs)
