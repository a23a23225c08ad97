"""Which requests advance next, and where. Pure Python: no torch, no threads, no clock of its own.

Each replica works on up to `max_num_seqs` requests at a time, and time is shared between them: every request is
charged the seconds of the forward passes that served it, split between those that shared a pass, and the one that was
charged least goes next, with all whose calls can run together with its own. A large request thus gets its share and no
more, and requests that stack well get far for theirs. (Known as fair queueing with virtual time.)
"""

from __future__ import annotations

import heapq
import itertools
import math
from typing import TYPE_CHECKING, Any

from omni_core.compat.vllm_omni import missing_from_module
from omni_core.outputs import EndReason, SchedulerOutput, StepOutput
from omni_core.request import OmniDiffusionRequest
from omni_core.scheduler_state import Blame, LostRequest, RunningRequest, ScheduledReplica
from omni_core.suspects import Queued, Suspect, Suspects, alone_for

# Seconds that one call of `execute_step` aims at when it may run several waves, and the most waves of one call. New
# requests and aborts interrupt it, and it returns when a request ends, so only reports of progress come later by it.
# Waking the engine's thread is what a call costs: on a busy machine, one request of the small model took 1.065 of the
# bare time with 0.05 s, 1.03 with 0.15.
_STEP_SECONDS = 0.15
_MOST_WAVES = 32
# Weight of the newest measurement in the running means.
_NEWEST = 0.3


class Scheduler:
    """Keeps the waiting queue, and what runs on each replica.

    The same calls in the same order give the same schedule.

    Args:
        num_replicas: Number of replicas to spread requests over.
        max_num_seqs: Most requests that one replica advances at a time. Parked ones do not count.
        max_batch_wait_s: Seconds for which an idle replica waits for more requests to begin together.
    """

    def __init__(self, num_replicas: int, max_num_seqs: int, max_batch_wait_s: float = 0.0) -> None:
        self._max_num_seqs = max_num_seqs
        self._max_batch_wait_s = max_batch_wait_s
        self._replicas = [ScheduledReplica() for _ in range(num_replicas)]
        self._arrivals = itertools.count()
        # Entries of ended requests stay in the heap until they come to its top: `_waiting` says which still wait.
        self._queue: list[tuple[int, int, str]] = []
        self._waiting: dict[str, Queued] = {}
        self._batch_since: float | None = None
        self._suspects = Suspects()
        self._incidents = itertools.count()
        # The replica that takes up nothing else until it is empty, so that suspects get their turn.
        self._reserved: int | None = None

    @property
    def num_waiting(self) -> int:
        """Requests that no replica has taken up yet."""
        return len(self._waiting) + len(self._suspects)

    @property
    def num_running(self) -> int:
        """Requests that a replica has taken up, parked ones among them, and has not been told to give up."""
        return sum(one.leaving is None for replica in self._replicas for one in replica.running.values())

    @property
    def num_parked(self) -> int:
        """Requests that gave their place to one of higher priority."""
        return sum(
            one.is_parked and one.leaving is None for replica in self._replicas for one in replica.running.values()
        )

    def add_request(self, request: OmniDiffusionRequest, now: float = 0.0) -> None:
        """Let a request wait for its turn.

        Args:
            request: Which.
            now: Seconds on the caller's clock.
        """
        if not self._waiting:
            self._batch_since = now
        self._wait(Queued(request, next(self._arrivals)))

    def _wait(self, waiting: Queued) -> None:
        self._waiting[waiting.request.request_id] = waiting
        heapq.heappush(self._queue, (*waiting.urgency, waiting.request.request_id))

    def end_request(self, request_id: str, reason: EndReason) -> bool:
        """End a request early.

        Returns:
            True if it was waiting and has ended by this; False if it runs, and will be reported in the output of a
            step, or is not known.
        """
        if self._waiting.pop(request_id, None) is not None or self._suspects.remove(request_id):
            return True
        for replica in self._replicas:
            one = replica.running.get(request_id)
            if one is not None and one.leaving is None:
                replica.ended.setdefault(request_id, reason)
        return False

    def batch_deadline(self) -> float | None:
        """Return until when idle replicas wait for company, on the clock of `add_request`; None if they do not."""
        if self._max_batch_wait_s <= 0 or not self._waiting or self._batch_since is None:
            return None
        return self._batch_since + self._max_batch_wait_s

    def schedule(
        self, replica_index: int, now: float = math.inf, *, asleep: bool = False, most_waves: int = 1
    ) -> SchedulerOutput | None:
        """Return what a replica shall do next, or None if there is nothing for it to do.

        Args:
            replica_index: Which replica.
            now: Seconds on the clock of `add_request`.
            asleep: Whether its workers sleep: then requests only end.
            most_waves: Waves to run at most in this call.
        """
        replica = self._replicas[replica_index]
        if asleep:
            if not replica.ended:
                return None
            return SchedulerOutput(ended_requests=replica.take_ended())
        new_requests = self._admit_suspect(replica_index) or self._admit(replica_index, now)
        if not replica.running:
            return None
        # What ends is told when the call returns.
        waves = self._plan(replica, replica.active, 1 if replica.ended else most_waves)
        replica.num_waves = len(waves)
        return SchedulerOutput(new_requests, replica.take_ended(), waves)

    def update_from_output(self, replica_index: int, step_output: StepOutput) -> None:
        """Charge the forward passes of a step, and free the places of the requests that ended in it."""
        replica = self._replicas[replica_index]
        for forward in step_output.forwards:
            share = forward.seconds / len(forward.request_ids)
            for request_id in forward.request_ids:
                if (one := replica.running.get(request_id)) is not None:
                    one.charged += share
                    one.cost = share
                    one.calls += 1
                    if one.suspect is not None and one.calls >= one.suspect.calls:
                        one.suspect, one.was_cleared = None, True  # further than where its worker died
            replica.wave_seconds = _mean(replica.wave_seconds, forward.seconds)
        for seconds in step_output.start_seconds:
            replica.start_seconds = _mean(replica.start_seconds, seconds)
        for request_id, one in replica.running.items():
            one.kind = step_output.kinds.get(request_id)
        for output in step_output.finished:
            replica.running.pop(output.request_id, None)
            replica.ended.pop(output.request_id, None)

    def take_running(self, replica_index: int) -> list[LostRequest]:
        """Take all requests away from a replica that failed, and return them."""
        replica, self._replicas[replica_index] = self._replicas[replica_index], ScheduledReplica()
        if self._reserved == replica_index:
            self._reserved = None
        incident = next(self._incidents)
        started = [one for one in replica.running.values() if one.is_started and not one.is_parked]
        # Where a suspect is at work, the others there are those that were cleared before it.
        blamed = [one for one in started if one.suspect is not None] or started
        if len(blamed) == 1 and (suspect := blamed[0].suspect) is not None:
            for cleared in self._suspects.take_cleared(suspect.incident):
                self._wait(cleared)
        suspected = {one.request.request_id for one in blamed}
        lost = []
        for name, one in replica.running.items():
            blame: Blame = "none"
            if name in suspected:
                blame = "in company" if len(blamed) > 1 else "alone" if len(started) == 1 else "newest"
            lost.append(
                LostRequest(
                    one.request,
                    one.arrival,
                    one.is_started,
                    one.leaving or replica.ended.get(name),
                    blame,
                    incident,
                    calls=one.calls + replica.num_waves,
                    deaths_in_company=one.deaths_in_company + (blame == "in company"),
                )
            )
        return lost

    def requeue(self, lost: LostRequest) -> None:
        """Let a request that a replica has lost wait again, at its old place.

        One that may be what the replica failed of is a suspect: see `omni_core.suspects`.
        """
        if lost.blame != "none":
            calls = alone_for(lost.blame != "in company", lost.calls, lost.deaths_in_company)
            self._suspects.add(
                Suspect(lost.request, lost.arrival, lost.deaths_in_company, incident=lost.incident, calls=calls)
            )
        else:
            self._wait(Queued(lost.request, lost.arrival, lost.deaths_in_company))

    def take_waiting(self) -> list[OmniDiffusionRequest]:
        """Take all requests away that no replica has taken up, and return them."""
        waiting = [one.request for one in (*self._suspects, *self._waiting.values())]
        self._suspects.clear()
        self._waiting.clear()
        return waiting

    def _admit_suspect(self, replica_index: int) -> list[OmniDiffusionRequest]:
        """Give an empty replica to the most urgent suspect, or see to it that one gets empty.

        Those that have been cleared count as nobody: if a worker dies again, it is not of them.
        """
        replica = self._replicas[replica_index]
        if not self._suspects:
            self._reserved = None
        elif not all(one.was_cleared for one in replica.running.values()):
            if self._reserved is None and not any(one.has_suspect for one in self._replicas):
                self._reserved = replica_index
        elif replica.running and self._suspects.most_urgent.calls == math.inf:
            self._reserved = replica_index  # that one gets no company, not even of those that were cleared
        elif len(replica.active) < self._max_num_seqs:
            self._reserved = None
            suspect = self._suspects.take_most_urgent()
            request = suspect.request
            charged = min((one.charged for one in replica.active), default=0.0)
            replica.running[request.request_id] = RunningRequest(
                request, suspect.arrival, suspect.deaths_in_company, charged=charged, suspect=suspect
            )
            return [request]
        return []

    def _admit(self, replica_index: int, now: float) -> list[OmniDiffusionRequest]:
        """Give places to the most urgent, parking less urgent ones if need be. Returns the requests that are new."""
        replica = self._replicas[replica_index]
        if replica.has_suspect:
            return []
        may_join = replica_index != self._reserved
        new_requests: list[OmniDiffusionRequest] = []
        # A fair share each, so that the replica that asks first does not take all and leave the others idle.
        share = -(-(self.num_waiting + self.num_running) // len(self._replicas))
        while True:
            waiting = self._first_waiting() if may_join else None
            if waiting is not None and not replica.running and not self._is_batch_complete(now):
                waiting = None
            parked = min(replica.parked, key=_urgency, default=None)
            from_waiting = waiting is not None and (parked is None or waiting.urgency < parked.urgency)
            first = waiting if from_waiting else parked
            if first is None:
                return new_requests
            candidate = first.request
            active = replica.active
            is_full = len(active) >= self._max_num_seqs
            if is_full or (from_waiting and len(active) >= share):
                if not any(one.request.priority < candidate.priority for one in active):
                    return new_requests
                if is_full:
                    max(active, key=_urgency).is_parked = True
            # One that joins is as far as the least far: it neither waits for the others nor makes them wait.
            charged = min((one.charged for one in replica.active), default=0.0)
            if from_waiting and waiting is not None:
                request = waiting.request
                del self._waiting[request.request_id]
                replica.running[request.request_id] = RunningRequest(
                    request, waiting.arrival, waiting.deaths_in_company, charged=charged
                )
                new_requests.append(request)
            elif parked is not None:
                parked.is_parked = False
                parked.charged = max(parked.charged, charged)

    def _is_batch_complete(self, now: float) -> bool:
        deadline = self.batch_deadline()
        return deadline is None or now >= deadline or self.num_waiting >= self._max_num_seqs

    def _first_waiting(self) -> Queued | None:
        while self._queue:
            request_id = self._queue[0][2]
            waiting = self._waiting.get(request_id)
            if waiting is not None and waiting.arrival == self._queue[0][1]:
                return waiting
            heapq.heappop(self._queue)
        return None

    def _plan(self, replica: ScheduledReplica, active: list[RunningRequest], most_waves: int) -> list[tuple[str, ...]]:
        """Return the waves of the next call: who advances in each."""
        unstarted = [one for one in active if not one.is_started]
        started = [one for one in active if one.is_started]
        if started and replica.start_seconds > 0:
            # Starting (encoding the prompt) holds the others up: no longer than one of their steps, but at least one.
            unstarted = unstarted[: max(1, int(replica.wave_seconds / replica.start_seconds))]
        for one in unstarted:
            one.is_started = True
        if not started:
            return [_names(unstarted)] if unstarted else []
        number = 1
        if not unstarted:
            number = min(
                most_waves, _MOST_WAVES, int(_STEP_SECONDS / replica.wave_seconds) if replica.wave_seconds else 1
            )
        charged = {one.request.request_id: one.charged for one in started}
        waves = []
        for _ in range(max(1, number)):
            # Those with no kind wait for an autoencoder: they cost nothing, and going along is harmless.
            ready = [one for one in started if one.kind is not None]
            chosen = started
            if ready:
                first = min(ready, key=lambda one: (charged[one.request.request_id], one.urgency))
                chosen = [one for one in started if one.kind in (first.kind, None)]
            waves.append(_names(chosen))
            for one in chosen:
                charged[one.request.request_id] += one.cost
        waves[0] += _names(unstarted)
        return waves


def _names(running: list[RunningRequest]) -> tuple[str, ...]:
    return tuple(one.request.request_id for one in running)


def _urgency(one: RunningRequest) -> tuple[int, int]:
    return one.urgency


def _mean(old: float, new: float) -> float:
    return new if old == 0.0 else (1 - _NEWEST) * old + _NEWEST * new


if not TYPE_CHECKING:  # type checkers shall go on to refuse names that do not exist

    def __getattr__(name: str) -> Any:
        raise missing_from_module(__name__, name)
