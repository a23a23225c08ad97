"""What the engine's thread keeps of each request and of each replica."""

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

# Seconds before a replica whose step did nothing is asked again: twice as long each time, up to the second.
_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.1
# Time limits of requests that have ended which may be kept, besides one for each that has not.
_MOST_IDLE_LIMITS = 100


@dataclass(slots=True)
class Live:
    """A request that has not ended.

    Attributes:
        handle: What its caller holds.
        submitted_at: When it was submitted, on the monotonic clock.
        started_at: When a worker began with it.
        num_retries: Times that it was run again.
        num_deaths: Deaths of workers that it may be the cause of.
        step: The highest step that was told since it was last begun.
        number: Which of the time limits is its own, if it has one.
        error: With what it must fail when the replica gives it up.
        is_made: Whether its output is there, and plugins look at it before it is given out.
        suspect: Why that output may be wrong, as was found meanwhile.
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
    """When the time of each request is over. A limit may outlive its request; what the request made does not."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._entries: list[tuple[float, int, str]] = []

    @property
    def first(self) -> float | None:
        """The earliest moment, on the monotonic clock."""
        return self._entries[0][0] if self._entries else None

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, live: Live, moment: float) -> None:
        """End a request at `moment`."""
        live.number = next(self._numbers)
        heapq.heappush(self._entries, (moment, live.number, live.handle.request_id))

    def take_due(self, now: float, live: Mapping[str, Live]) -> list[Live]:
        """Return the requests whose time is over, each once.

        Args:
            now: The moment.
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
    """Return the request that a limit belongs to; None if it has ended, and another may have its name."""
    one = live.get(entry[2])
    return one if one is not None and one.number == entry[1] else None


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers of requests by state, at one moment. Never changed, so that any thread may read it."""

    waiting: int = 0
    running: int = 0
    parked: int = 0
    ended: tuple[tuple[str, int], ...] = ()


@dataclass(slots=True)
class ReplicaState:
    """One replica.

    Attributes:
        step: The step that runs.
        placed: The requests that it has, by id.
        strays: Ids of requests that were taken away from it though its workers may go on with them, and whether it was
            told to give them up.
        paused_until: Until when it is given no waves, since its last step did nothing.
        begun_at: When the step that runs, or ran last, was handed over; on the monotonic clock.
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
        """The requests that it has, by id."""
        return {request_id: live.request for request_id, live in self.placed.items()}

    def begin(self, scheduler_output: SchedulerOutput, new: Iterable[Live]) -> None:
        """Take note of a step that begins."""
        self.begun_at = time.monotonic()
        for live in new:
            self.placed[live.handle.request_id] = live
            self.strays.pop(live.handle.request_id, None)
        self._may_be_empty = not any(scheduler_output.waves)

    def interrupted(self) -> None:
        """Take note that the step which runs was asked to end early."""
        self._may_be_empty = True

    def end(self, step_output: StepOutput, now: float) -> None:
        """Take note of a step that has ended. One that did nothing is followed by a pause.

        A worker that was put to sleep behind the engine's back does nothing, as fast as it is asked.
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
        """Return whether the replica may be given waves."""
        if self.paused_until > now:
            return False
        self.paused_until = 0.0
        return True

    def look_again(self) -> None:
        """End a pause."""
        self._pause_s = self.paused_until = 0.0

    def lose(self, *, workers_go_on: bool) -> None:
        """Take all requests away.

        Args:
            workers_go_on: Whether the workers still have them and must be told.
        """
        if workers_go_on:
            self.strays.update(dict.fromkeys(self.placed, False))
        else:
            self.strays.clear()
        self.placed.clear()
        self.look_again()

    def give_up_strays(self) -> SchedulerOutput | None:
        """Return what tells the workers to give up what was taken away from them, in a step of its own; None if told.

        Of its own, since a new request may have the id of one of them: its caller tries again.
        """
        untold = [request_id for request_id, was_told in self.strays.items() if not was_told]
        if not untold:
            return None
        self.strays.update(dict.fromkeys(untold, True))
        return SchedulerOutput(ended_requests=dict.fromkeys(untold, "aborted"))
