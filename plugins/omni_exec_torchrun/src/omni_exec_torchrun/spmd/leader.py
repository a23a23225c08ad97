"""Rank 0 of an SPMD engine. Its scheduler decides what runs on all ranks."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from omni_core import OmniDiffusionRequest
from omni_core.calls import WorkerReply
from omni_core.errors import ExecutorError, OmniError, RankGroupError
from omni_core.outputs import SchedulerOutput, StepOutput
from omni_exec_torchrun.spmd.fields import request_fields
from omni_exec_torchrun.spmd.messages import (
    Alive,
    Announcement,
    Broken,
    Call,
    Ended,
    Identity,
    Kind,
    Leaving,
    Reply,
    Results,
    Step,
    Stop,
)
from omni_exec_torchrun.spmd.rank import PendingCall, SpmdRank
from omni_exec_torchrun.spmd.world import SpmdWorld

# Seconds that closing waits for the other ranks to finish and disconnect.
_GOODBYE_S = 10.0


class Leader(SpmdRank):
    """Announces each step and each call to the other ranks, when they have submitted the same, and runs it too."""

    def __init__(
        self, world: SpmdWorld, timeout_s: float, startup_timeout_s: float, on_fault: Callable[[], None]
    ) -> None:
        self._numbers: dict[str, int] = {}  # by id, of requests that have not ended
        self._begun: set[str] = set()
        self._replies: dict[int, dict[int, WorkerReply]] = {}
        self._left: dict[int, Leaving] = {}  # ranks that are closing
        self._gone: set[int] = set()  # ranks that take no part any more
        super().__init__(world, timeout_s, startup_timeout_s, on_fault)

    def execute_step(self, scheduler_output: SchedulerOutput) -> Future[StepOutput]:
        """Run a step on all ranks."""
        for request in scheduler_output.new_requests:
            if request.request_id not in self._numbers:
                self.submit_request(request)
            self._begun.add(request.request_id)
        numbers = [self._numbers[request.request_id] for request in scheduler_output.new_requests]
        return self._thread.submit(self._run, lambda: self._step(scheduler_output, numbers))

    def interrupt(self) -> None:
        """Let the running step return after the current wave, on all ranks."""
        if self.worker is not None:
            self.worker.interrupt()

    def submit_request(self, request: OmniDiffusionRequest) -> None:
        """Number a request of this rank's engine."""
        fields = request_fields(request)
        with self._order:
            self._numbers[request.request_id] = self._ledgers["request"].count(0) + 1
            self._announce("request", fields)

    def end_request(self, request_id: str, error: OmniError | None) -> None:
        """Handle the end of a request in this engine. If it was never started, notify the other ranks."""
        number = self._numbers.pop(request_id, None)
        if number is None:
            return
        if request_id in self._begun:
            self._begun.discard(request_id)
        elif error is not None:
            self._connections.send(Ended(number, error))

    def receive(self, rank: int, message: Any) -> None:
        """Handle a message from another rank."""
        match message:
            case Announcement(kind, fields):
                self._note(kind, rank, fields)
            case Reply(reply):
                with self._changed:
                    self._replies.setdefault(reply.call_id, {})[rank] = reply
                    self._changed.notify_all()
            case Broken(text, trace):
                self.fail(RankGroupError(text, worker_traceback=trace))
            case Leaving():
                with self._changed:
                    self._left[rank] = message
                    self._changed.notify_all()
                with contextlib.suppress(RuntimeError):  # this rank closes too
                    self._thread.submit(self._release, rank)

    def lost(self, rank: int) -> None:
        """Handle the end of the connection to `rank`. It is expected if the rank or this one is closing."""
        with self._changed:
            expected = self.is_closing or rank in self._left
            self._gone.add(rank)
            self._changed.notify_all()
        if not expected:
            super().lost(rank)

    def tick(self) -> None:
        """Send a heartbeat, and check the time limits."""
        self._connections.send(Alive())
        super().tick()

    def _compared(self) -> Iterable[int]:
        return range(self.world.group.world_size)

    def _begin_call(self, call: PendingCall) -> None:
        try:
            self._thread.submit(self._call, call)
        except RuntimeError:
            raise ExecutorError("The engine was closed.") from None
        self.interrupt()

    def _fail_step(self, error: OmniError) -> None:
        pass  # the step runs in the worker's thread, where it fails too

    def _say_goodbye(self) -> None:
        self.interrupt()

    def _end_worker(self) -> None:
        if self.fault is None:
            ours = self.counts()
            self._connections.send(Stop(ours.requests, ours.calls))
            with self._changed:
                self._changed.wait_for(lambda: len(self._gone) == self.world.group.world_size - 1, _GOODBYE_S)
            for rank, theirs in self._left.items():
                self._warn_of_difference(rank, theirs)
        super()._end_worker()

    # The worker's thread.

    def _step(self, scheduler_output: SchedulerOutput, numbers: list[int]) -> StepOutput:
        self._wait_for_others("request", max(numbers, default=0))
        identities = [Identity(request.request_id, request.seed) for request in scheduler_output.new_requests]
        if self.world.group.world_size > 1:
            new = dict(zip(numbers, identities, strict=True))
            self._connections.send(Step(new, scheduler_output.ended_requests, scheduler_output.waves))
        output: StepOutput = self.worker.execute_step(scheduler_output)
        return output

    def _call(self, call: PendingCall) -> None:
        try:
            self._wait_for_others("call", call.number)
            self._connections.send(Call(call.number, call.identities))
            self._make_call(call, call.identities)
            replies = self._wait_for_replies(call)
            if self.world.group.world_size > 1:
                self._send_result(call, lambda own: Results(call.number, [own, *replies[1:]]))
        except OmniError as error:
            self._fail_calls(self.fail(error))
        else:
            self._finish_call(call.number, replies)

    def _wait_for_others(self, kind: Kind, number: int) -> None:
        """Wait until all ranks have submitted the request or call that this one is about to start."""
        ledger = self._ledgers[kind]

        def left_behind() -> set[int]:
            return self._gone | {rank for rank in self._left if ledger.count(rank) < number}

        with self._changed:
            self._changed.wait_for(
                lambda: left_behind() or ledger.is_complete(number) or self.fault is not None or self.is_closing
            )
            left = left_behind()
        if self.fault is not None:
            raise self.fault
        if self.is_closing:
            raise ExecutorError("The engine was closed.")
        if left:
            raise self.fail(self._has_left(min(left)))

    def _wait_for_replies(self, call: PendingCall) -> list[WorkerReply]:
        ranks = range(1, self.world.group.world_size)
        deadline = time.monotonic() + call.timeout_s
        with self._changed:
            replies = self._replies.setdefault(call.number, {})
            while len(replies) < len(ranks):
                if self.fault is not None:
                    raise self.fault
                left = deadline - time.monotonic()
                if left <= 0 or self.is_closing:
                    missing = ", ".join(str(rank) for rank in ranks if rank not in replies)
                    raise RankGroupError(
                        f"Rank {missing} did not return from call number {call.number} ({call.name!r}) within "
                        f"{call.timeout_s:g} s after rank 0 had."
                    )
                self._changed.wait(left)
            del self._replies[call.number]
        assert call.own is not None
        return [call.own, *(replies[rank] for rank in ranks)]

    def _release(self, rank: int) -> None:
        """Release a closing rank, between two steps."""
        with self._changed:
            self._gone.add(rank)
        ours = self.counts()
        self._connections.send(Stop(ours.requests, ours.calls), rank)

    def _has_left(self, rank: int) -> RankGroupError:
        theirs = self._left.get(rank)
        asked = f" after {theirs.requests} requests and {theirs.calls} calls" if theirs is not None else ""
        ours = self.counts()
        return RankGroupError(
            f"Rank {rank} has closed its engine{asked}, and rank 0, which has asked for {ours.requests} requests and "
            f"{ours.calls} calls, still needs it."
        )


def with_identity(request: OmniDiffusionRequest, identity: Identity) -> OmniDiffusionRequest:
    """Return a request with the id and the seed of rank 0."""
    return request.model_copy(update=dataclasses.asdict(identity))
