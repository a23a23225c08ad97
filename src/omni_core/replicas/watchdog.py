"""Watches busy workers: whether they reply to pings, and how long a step takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from omni_core.replicas.loop import Loop
from omni_core.replicas.worker import Worker

# Maximum seconds between two checks.
_LONGEST_TICK_S = 5.0


class Watchdog:
    """Declares workers dead that hang. While no worker is busy it has no timer, so that an idle engine uses no CPU.

    Args:
        loop: The loop in whose thread it runs.
        workers: Returns the current workers.
        step_timeout_s: Maximum seconds of a step; None for no limit.
        heartbeat_timeout_s: Maximum seconds without a reply to a ping from a busy worker; None for no limit.

    Attributes:
        step_since: When the current step began, on the loop's clock; None if none runs.
    """

    def __init__(
        self,
        loop: Loop,
        workers: Callable[[], Sequence[Worker]],
        step_timeout_s: float | None,
        heartbeat_timeout_s: float | None,
    ) -> None:
        self.step_since: float | None = None
        self._loop = loop
        self._workers = workers
        self._step_timeout_s = step_timeout_s
        self._heartbeat_timeout_s = heartbeat_timeout_s
        limits = [limit / 4 for limit in (step_timeout_s, heartbeat_timeout_s) if limit is not None]
        self._tick_s = min(_LONGEST_TICK_S, *limits) if limits else None
        self._is_looking = False
        loop.on_late(self._forgive)

    def look_after(self) -> None:
        """Start the checks, unless they run: a worker got a call. From any thread."""
        if self._tick_s is not None and not self._is_looking:
            self._is_looking = True
            self._loop.call_soon(self._set_tick)

    def _set_tick(self) -> None:
        assert self._tick_s is not None
        self._loop.call_later(self._tick_s, self._look)

    def _look(self) -> None:
        if not self._is_busy():
            self._is_looking = False
            if not self._is_busy():
                return
            self._is_looking = True  # a call came in between and found the checks running
        now = self._loop.time()
        for worker in self._workers():
            if worker.num_pending and (what := self._trouble(worker, now)) is not None:
                worker.declare_dead(what)
                break
        self._set_tick()

    def _forgive(self, seconds: float) -> None:
        """Do not count the time in which this process itself was stopped: it could not read replies."""
        since, now = self.step_since, self._loop.time()
        if since is not None and since + seconds <= now:  # the step began before that
            self.step_since = since + seconds
        for worker in self._workers():
            worker.forgive(seconds)

    def _is_busy(self) -> bool:
        return any(worker.num_pending for worker in self._workers())

    def _trouble(self, worker: Worker, now: float) -> str | None:
        """Return what is wrong with a busy worker. If nothing is, send it a ping."""
        limit_s, since = self._step_timeout_s, self.step_since
        if limit_s is not None and since is not None and now - since > limit_s:
            return f"did not finish a step within step_timeout_s = {limit_s:g} s and was killed"
        silent_s = worker.silent_for(now)
        if self._heartbeat_timeout_s is not None and silent_s > self._heartbeat_timeout_s:
            return (
                f"gave no sign of life for {silent_s:.1f} s (heartbeat_timeout_s: stopped, or stuck in native code) "
                "and was killed"
            )
        worker.ping()
        return None
