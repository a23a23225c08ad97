"""Looking after workers that are busy: whether they still give signs of life, and how long a step has taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from omni_core.replicas.loop import Loop
from omni_core.replicas.worker import Worker

# Seconds between two looks, at most.
_LONGEST_TICK_S = 5.0


class Watchdog:
    """Declares workers dead that hang. While none is busy it does nothing, so that an idle engine uses no CPU.

    Args:
        loop: In whose thread it looks.
        workers: Gives the workers as they are now.
        step_timeout_s: Most seconds for a step; None for no limit.
        heartbeat_timeout_s: Most seconds without a sign of life from a busy worker; None for no limit.

    Attributes:
        step_since: When the step began that is under way, on the loop's clock; None if none is.
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
        """Begin to look, unless it does: a worker has got something to do. From any thread."""
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
            self._is_looking = True  # a call came just now, and saw that somebody looks
        now = self._loop.time()
        for worker in self._workers():
            if worker.num_pending and (what := self._trouble(worker, now)) is not None:
                worker.declare_dead(what)
                break
        self._set_tick()

    def _forgive(self, seconds: float) -> None:
        """Do not count the time in which this process itself stood still: nobody could have been heard."""
        since, now = self.step_since, self._loop.time()
        if since is not None and since + seconds <= now:  # not a step that has begun after that
            self.step_since = since + seconds
        for worker in self._workers():
            worker.forgive(seconds)

    def _is_busy(self) -> bool:
        return any(worker.num_pending for worker in self._workers())

    def _trouble(self, worker: Worker, now: float) -> str | None:
        """Return what is wrong with a busy worker; ask it for a sign of life if nothing is."""
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
