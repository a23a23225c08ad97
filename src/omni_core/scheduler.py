"""Which request runs next, and where. Pure Python: no torch, no threads, no clock."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

from omni_core.outputs import EndReason, SchedulerOutput, StepOutput
from omni_core.request import OmniDiffusionRequest


@dataclass(slots=True)
class _Replica:
    running: dict[str, OmniDiffusionRequest] = field(default_factory=dict)
    ended: dict[str, EndReason] = field(default_factory=dict)


class Scheduler:
    """Keeps the waiting queue, and what runs on each replica.

    Waiting requests go by priority, then by arrival. The same calls in the same order give the same schedule.

    Args:
        num_replicas: Number of replicas to spread requests over.
        max_num_seqs: Most requests that one replica works on at a time.
    """

    def __init__(self, num_replicas: int, max_num_seqs: int) -> None:
        self._max_num_seqs = max_num_seqs
        self._replicas = [_Replica() for _ in range(num_replicas)]
        self._arrival = itertools.count()
        # Entries of ended requests stay in the heap until they come to its top: `_waiting` says which still wait.
        self._queue: list[tuple[int, int, str]] = []
        self._waiting: dict[str, OmniDiffusionRequest] = {}

    @property
    def num_waiting(self) -> int:
        """Requests that no replica has taken up yet."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that a replica works on."""
        return sum(len(replica.running) for replica in self._replicas)

    def add_request(self, request: OmniDiffusionRequest) -> None:
        """Let a request wait for its turn."""
        self._waiting[request.request_id] = request
        heapq.heappush(self._queue, (-request.priority, next(self._arrival), request.request_id))

    def end_request(self, request_id: str, reason: EndReason) -> bool:
        """End a request early.

        Returns:
            True if it was waiting and has ended by this; False if it runs, and will be reported in the output of a
            step, or is not known.
        """
        if self._waiting.pop(request_id, None) is not None:
            return True
        for replica in self._replicas:
            if request_id in replica.running:
                replica.ended.setdefault(request_id, reason)
        return False

    def schedule(self, replica_index: int, asleep: bool = False) -> SchedulerOutput | None:
        """Return what a replica shall do next, or None if there is nothing for it to do.

        Args:
            replica_index: Which replica.
            asleep: Whether its workers sleep: then requests only end.
        """
        replica = self._replicas[replica_index]
        if asleep:
            if not replica.ended:
                return None
            ended, replica.ended = replica.ended, {}
            return SchedulerOutput(ended_requests=ended, num_steps=0)
        new_requests = []
        # A fair share each, so that the replica that asks first does not take all and leave the others idle.
        share = -(-(self.num_waiting + self.num_running) // len(self._replicas))
        while len(replica.running) < min(self._max_num_seqs, share) and self._waiting:
            request = self._pop_waiting()
            replica.running[request.request_id] = request
            new_requests.append(request)
        if not replica.running:
            return None
        ended, replica.ended = replica.ended, {}
        return SchedulerOutput(new_requests, ended, num_steps=1)

    def update_from_output(self, replica_index: int, step_output: StepOutput) -> None:
        """Free the places of the requests that ended in a step."""
        replica = self._replicas[replica_index]
        for output in step_output.finished:
            replica.running.pop(output.request_id, None)
            replica.ended.pop(output.request_id, None)

    def take_running(self, replica_index: int) -> list[OmniDiffusionRequest]:
        """Take all running requests away from a replica that failed, and return them."""
        replica, self._replicas[replica_index] = self._replicas[replica_index], _Replica()
        return list(replica.running.values())

    def _pop_waiting(self) -> OmniDiffusionRequest:
        while True:
            _, _, request_id = heapq.heappop(self._queue)
            if (request := self._waiting.pop(request_id, None)) is not None:
                return request
