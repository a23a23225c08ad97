"""What an engine learns of the costs of its requests, and what it tells callers of when they will be done."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from omni_core.costs import Cost, CostKind, Costs, is_seconds, kind_of
from omni_core.forecast import Work, forecast
from omni_core.outputs import OmniRequestOutput, RequestEstimate, StepOutput
from omni_core.pipeline_info import PipelineInfo
from omni_core.request import OmniDiffusionRequest

# Steps that no request takes: such a number is not reckoned with, as it may be too large for that.
_MOST_STEPS = 1_000_000


@dataclass(slots=True, kw_only=True)
class _Tracked(Work):
    """A request that has not ended.

    Attributes:
        round_s: Time of its replica since it last did a step.
        together: The most requests that the replica was working on meanwhile: so many have done a step, or nearly.
        is_made: Whether its output is there, and plugins look at it before it is given out.
    """

    round_s: float = 0.0
    together: int = 0
    is_made: bool = False

    def begin_again(self) -> None:
        self.done, self.replica, self.is_started, self.round_s, self.together = 0, None, False, 0.0, 0


class Estimates:
    """Follows the requests of an engine. What the engine decides does not depend on it.

    The engine's thread tells, any thread asks. Both hold the lock for microseconds; the reckoning is done without it.

    Args:
        info: What is known of the pipeline.
        num_replicas: How many replicas there are.
        max_num_seqs: Requests that one replica works on at a time.
    """

    def __init__(self, info: PipelineInfo | None, num_replicas: int, max_num_seqs: int) -> None:
        self._info = info
        self._num_places = max_num_seqs
        # Re-entrant: a signal handler may ask while the thread that it interrupts asks.
        self._lock = threading.RLock()
        self._costs = Costs()
        self._works: dict[str, _Tracked] = {}
        self._placed: list[dict[str, _Tracked]] = [{} for _ in range(num_replicas)]
        self._began_at = [0.0] * num_replicas
        self._ready = [False] * num_replicas

    # For the engine.

    def add(self, requests: Iterable[OmniDiffusionRequest]) -> None:
        """Requests were accepted, in this order."""
        new = {request.request_id: self._work(request) for request in requests}
        with self._lock:
            self._works.update(new)

    def remove(self, request_id: str) -> None:
        """A request has ended."""
        with self._lock:
            work = self._works.pop(request_id, None)
            if work is not None and work.replica is not None and self._placed[work.replica].get(request_id) is work:
                del self._placed[work.replica][request_id]

    def note_ready(self, replica: int, *, is_ready: bool) -> None:
        """A replica can serve requests, or cannot."""
        self._ready[replica] = is_ready

    def step_begins(self, replica: int, new: Iterable[OmniDiffusionRequest], now: float) -> None:
        """A replica is given a step, and with it new requests.

        Args:
            replica: Index of the replica.
            new: What it takes up.
            now: On the monotonic clock.
        """
        with self._lock:
            self._began_at[replica] = now
            for request in new:
                if (work := self._works.get(request.request_id)) is not None:
                    work.replica = replica
                    self._placed[replica][request.request_id] = work

    def step_done(self, replica: int, seconds: float, output: StepOutput) -> None:
        """Learn from a step.

        Args:
            replica: Index of the replica.
            seconds: How long it took. That, and not the seconds of its forward passes, which on accelerators may be
                those of handing the work over.
            output: What was done in it.
        """
        if not (output.started or output.progress or output.finished or output.forwards):
            return  # it sleeps, or was only told something
        with self._lock:
            self._step_done(replica, seconds, output)

    def lost(self, replica: int) -> None:
        """All requests were taken away from a replica: they wait again, if they have not ended."""
        with self._lock:
            for work in self._placed[replica].values():
                work.begin_again()
            self._placed[replica].clear()

    # For callers, from any thread.

    def estimate(self, request: OmniDiffusionRequest) -> RequestEstimate | None:
        """Return when a request will be done, or would be if it were submitted now; None if that is not known yet."""
        with self._lock:
            # Copies: the engine's thread goes on. The list first, at a stroke: a signal handler may submit meanwhile.
            works = {request_id: copy.copy(work) for request_id, work in list(self._works.items())}
        target = works.get(request.request_id)
        others = [work for work in works.values() if not work.is_made]
        if target is None:
            target = self._work(request)
        elif target.is_made:
            return RequestEstimate(0.0, 0.0, 0)
        now = time.monotonic()
        return forecast(
            target,
            others,
            # Where none is ready, one will be, it is hoped.
            num_replicas=max(1, sum(self._ready)),
            num_places=self._num_places,
            cost_of=self._cost_of,
            elapsed=lambda replica: max(0.0, now - self._began_at[replica]),
        )

    def _cost_of(self, kind: CostKind) -> Cost | None:
        with self._lock:
            return self._costs.cost(kind)

    def _work(self, request: OmniDiffusionRequest) -> _Tracked:
        kind, steps = kind_of(request, self._info)
        return _Tracked(kind=kind, priority=request.priority, steps=steps)

    # With the lock.

    def _step_done(self, replica: int, seconds: float, output: StepOutput) -> None:
        placed = self._placed[replica]
        self._note_starts(placed, output)
        seconds -= sum(filter(is_seconds, output.start_seconds))
        ends = [(work, one) for one in output.finished if (work := placed.get(one.request_id)) is not None]
        for _, one in ends:
            # What was decoded beside the steps of others, or before this step, is no part of its time.
            if is_seconds(decode_s := one.metrics.decode_s) and decode_s <= seconds:
                seconds -= decode_s
        for made in (output.progress, output.finished):
            for told in made:
                if (work := placed.get(told.request_id)) is not None:
                    work.is_started = True
        working = [work for work in placed.values() if work.is_started]
        if len(working) > self._num_places:  # the others are parked
            working = sorted(working, key=lambda work: -work.priority)[: self._num_places]
        for work in working:
            work.round_s += max(0.0, seconds)
            work.together = max(work.together, len(working))
        for progress in output.progress:
            if (work := placed.get(progress.request_id)) is not None:
                if work.done == 0 and 0 < progress.num_steps < _MOST_STEPS:
                    work.steps = progress.num_steps
                    self._costs.add_total(work.kind, work.steps)
                self._note_steps(work, min(progress.step, _MOST_STEPS))
        for work, one in ends:
            self._note_end(work, one)
            work.is_made = True
            del placed[one.request_id]

    def _note_starts(self, placed: dict[str, _Tracked], output: StepOutput) -> None:
        times = output.start_seconds if len(output.start_seconds) == len(output.started) else ()
        for request_id in output.started:
            if (work := placed.get(request_id)) is not None:
                # From the beginning, also where it was begun before: as after a sleep of level 2.
                work.is_started, work.done, work.round_s, work.together = True, 0, 0.0, 0
        for request_id, seconds in zip(output.started, times, strict=False):
            if (work := placed.get(request_id)) is not None:
                self._costs.add_start(work.kind, seconds)

    def _note_steps(self, work: _Tracked, done: int) -> None:
        # Whether they took turns or were stacked: what counts is after how long it had done its next step.
        if done > work.done and work.together:
            self._costs.add_round(work.kind, work.together, work.round_s, done - work.done)
            work.done, work.round_s, work.together = done, 0.0, 0

    def _note_end(self, work: _Tracked, output: OmniRequestOutput) -> None:
        if output.finish_reason != "finished":
            return
        steps = output.metrics.num_steps
        if type(steps) is not int or not 1 <= steps < _MOST_STEPS:
            steps = max(work.done, work.steps or 1)
        if work.done == 0:
            self._costs.add_total(work.kind, steps)
        self._note_steps(work, steps)
        self._costs.add_end(work.kind, output.metrics.decode_s)
