"""The records that the engine's thread keeps for each request and each replica."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from omni_core.engine.handle import RequestHandle
from omni_core.errors import ContractError
from omni_core.outputs import SchedulerOutput, StepOutput
from omni_core.request import OmniDiffusionRequest

# Seconds before the next step of a replica whose step did nothing; doubled each time, up to the maximum.
_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.1
# Time limits of ended requests that may remain in the heap before it is cleaned up.
_MOST_IDLE_LIMITS = 100


@dataclass(slots=True)
class Live:
    """A request that has not ended.

    Attributes:
        handle: The caller's handle.
        submitted_at: When it was submitted, on the monotonic clock.
        started_at: When a worker first started it.
        num_retries: Number of retries so far.
        num_deaths: Number of worker deaths that it may have caused.
        step: The highest step reported since its last start.
        number: Number of its time limit, if it has one.
        error: The error with which it must fail when the replica has ended it.
        is_made: Whether its output exists and the output hooks of plugins are running.
        suspect: Why that output may be wrong, if a later check found so.
    """

    handle: RequestHandle
    submitted_at: float
    started_at: float | None = None
    num_retries: int = 0
    num_deaths: int = 0
    step: int = 0
    number: int | None = None
    error: ContractError | None = None
    is_made: bool = False
    suspect: str = ""

    @property
    def request(self) -> OmniDiffusionRequest:
        """The request itself."""
        return self.handle.request


class TimeLimits:
    """The deadlines of requests. An entry may outlive its request, but holds no reference to it."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._entries: list[tuple[float, int, str]] = []

    @property
    def first(self) -> float | None:
        """The earliest deadline, on the monotonic clock; None if there is none."""
        return self._entries[0][0] if self._entries else None

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, live: Live, moment: float) -> None:
        """Set the deadline of a request to `moment`, on the monotonic clock."""
        live.number = next(self._numbers)
        heapq.heappush(self._entries, (moment, live.number, live.handle.request_id))

    def take_due(self, now: float, live: Mapping[str, Live]) -> list[Live]:
        """Return the requests whose deadline has passed, each once.

        Args:
            now: The current time, on the monotonic clock.
            live: All requests that have not ended, by id.
        """
        due = []
        while self._entries and self._entries[0][0] <= now:
            entry = heapq.heappop(self._entries)
            if (one := _of_entry(entry, live)) is not None:
                due.append(one)
        if len(self._entries) > _MOST_IDLE_LIMITS + 2 * len(live):
            self._entries = [entry for entry in self._entries if _of_entry(entry, live) is not None]
            heapq.heapify(self._entries)
        return due


def _of_entry(entry: tuple[float, int, str], live: Mapping[str, Live]) -> Live | None:
    """Return the request that a deadline belongs to; None if it has ended. A later request may have the same id."""
    one = live.get(entry[2])
    return one if one is not None and one.number == entry[1] else None


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers of requests by state, at one moment. Immutable, so that any thread may read it."""

    waiting: int = 0
    running: int = 0
    parked: int = 0
    ended: tuple[tuple[str, int], ...] = ()


@dataclass(slots=True)
class ReplicaState:
    """The engine's record of one replica.

    Attributes:
        step: The future of the running step; None if none runs.
        placed: The requests that run on it, by id.
        strays: Requests that the engine has taken away while the workers may still run them: by id, whether the
            workers were told to end them.
        paused_until: Until when it gets no waves, because its last step did nothing; on the monotonic clock.
        begun_at: When the running or the last step was sent; on the monotonic clock.
    """

    step: Future[StepOutput] | None = None
    placed: dict[str, Live] = field(default_factory=dict)
    strays: dict[str, bool] = field(default_factory=dict)
    paused_until: float = 0.0
    begun_at: float = 0.0
    _pause_s: float = 0.0
    _may_be_empty: bool = True

    @property
    def requests(self) -> dict[str, OmniDiffusionRequest]:
        """The requests that run on it, by id."""
        return {request_id: live.request for request_id, live in self.placed.items()}

    def begin(self, scheduler_output: SchedulerOutput, new: Iterable[Live]) -> None:
        """Record that a step begins."""
        self.begun_at = time.monotonic()
        for live in new:
            self.placed[live.handle.request_id] = live
            self.strays.pop(live.handle.request_id, None)
        self._may_be_empty = not any(scheduler_output.waves)

    def interrupted(self) -> None:
        """Record that the running step was interrupted: it may do nothing without a pause after it."""
        self._may_be_empty = True

    def end(self, step_output: StepOutput, now: float) -> None:
        """Record that a step has ended. After a step that did nothing, the replica pauses.

        A worker that was put to sleep without the engine does nothing and returns at once, which would be a busy loop.
        """
        for output in step_output.finished:
            self.placed.pop(output.request_id, None)
            self.strays.pop(output.request_id, None)
        did = step_output.started or step_output.progress or step_output.finished or step_output.forwards
        if did or self._may_be_empty:
            self.look_again()
        else:
            self._pause_s = min(max(_FIRST_PAUSE_S, 2 * self._pause_s), _LONGEST_PAUSE_S)
            self.paused_until = now + self._pause_s

    def end_pause(self, now: float) -> bool:
        """Return whether the replica may get waves, and end a pause that is over."""
        if self.paused_until > now:
            return False
        self.paused_until = 0.0
        return True

    def look_again(self) -> None:
        """End a pause."""
        self._pause_s = self.paused_until = 0.0

    def lose(self, *, workers_go_on: bool) -> None:
        """Take all requests away from the replica.

        Args:
            workers_go_on: Whether the workers still run them and must be told to end them.
        """
        if workers_go_on:
            self.strays.update(dict.fromkeys(self.placed, False))
        else:
            self.strays.clear()
        self.placed.clear()
        self.look_again()

    def give_up_strays(self) -> SchedulerOutput | None:
        """Return a step that tells the workers to end the stray requests; None if all were told.

        It is a separate step, since a new request may have the same id as a stray one: its caller tries again.
        """
        untold = [request_id for request_id, was_told in self.strays.items() if not was_told]
        if not untold:
            return None
        self.strays.update(dict.fromkeys(untold, True))
        return SchedulerOutput(ended_requests=dict.fromkeys(untold, "aborted"))
