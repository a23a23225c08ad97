"""How far running jobs are. Kept in memory alone: after a restart a job begins anew."""

from __future__ import annotations

import threading


class Progress:
    """Percent by job. All methods may be called from any thread and never wait for the disk."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._percent: dict[str, int] = {}

    def begin(self, job_id: str) -> None:
        """Let a job be at 0, unless it is further."""
        with self._lock:
            self._percent.setdefault(job_id, 0)

    def note(self, job_id: str, percent: float) -> None:
        """Remember how far a job is.

        Less than before changes nothing, nor does a job that is not running.

        Args:
            job_id: The job.
            percent: From 0 to 100; what is more counts as 100.
        """
        with self._lock:
            known = self._percent.get(job_id)
            if known is not None and percent > known:
                self._percent[job_id] = int(min(percent, 100))

    def of(self, job_id: str) -> int:
        """Return how far a job is, in percent; 0 if it is not running."""
        with self._lock:
            return self._percent.get(job_id, 0)

    def end(self, job_id: str) -> None:
        """Forget a job, which has ended."""
        with self._lock:
            self._percent.pop(job_id, None)

    def clear(self) -> None:
        """Forget all jobs."""
        with self._lock:
            self._percent.clear()
