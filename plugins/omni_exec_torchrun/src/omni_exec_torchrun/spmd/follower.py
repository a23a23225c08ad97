"""The ranks of an SPMD engine except rank 0: they run the steps of rank 0, and report results to their own engine."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from omni_core import OmniDiffusionRequest, OmniRequestOutput
from omni_core.errors import OmniError, RankGroupError, RequestAbortedError, RequestTimeoutError
from omni_core.outputs import SchedulerOutput, StepOutput, StepProgress
from omni_exec_torchrun.spmd.fields import request_fields
from omni_exec_torchrun.spmd.leader import with_identity
from omni_exec_torchrun.spmd.messages import Announcement, Broken, Call, Ended, Leaving, Reply, Results, Step, Stop
from omni_exec_torchrun.spmd.rank import PendingCall, SpmdRank
from omni_exec_torchrun.spmd.world import SpmdWorld

# Seconds that a closing rank waits for rank 0 to finish its step.
_GOODBYE_S = 10.0
# Rank 0 sends a heartbeat every second. The minimum silence after which it counts as lost, since it may be slow.
_LEAST_SILENCE_S = 10.0


@dataclass(slots=True)
class _OwnRequest:
    """A request of this rank's engine, with the news about it that the engine has not got yet.

    Attributes:
        request: The request.
        is_given: Whether the scheduler has passed it to `execute_step`, so that news can be reported.
        is_over: Whether the engine has ended it, so that no news is reported any more.
        has_started: News: it was started.
        progress: News: its latest progress.
        output: News: its output.
    """

    request: OmniDiffusionRequest
    is_given: bool = False
    is_over: bool = False
    has_started: bool = False
    progress: StepProgress | None = None
    output: OmniRequestOutput | None = None


class Follower(SpmdRank):
    """Runs each step and each call that rank 0 announces.

    Args:
        world: The ranks.
        timeout_s: Seconds that one rank may wait for another.
        startup_timeout_s: Seconds that it may wait while the pipeline is loaded.
        on_fault: Called when the ranks cannot continue together.
        keeps_outputs: Whether outputs of this rank have values; else they are empty.
    """

    def __init__(
        self,
        world: SpmdWorld,
        timeout_s: float,
        startup_timeout_s: float,
        on_fault: Callable[[], None],
        keeps_outputs: bool = True,
    ) -> None:
        self._keeps_outputs = keeps_outputs
        self._own_requests: dict[int, _OwnRequest] = {}
        self._numbers: dict[str, int] = {}  # by id of this rank
        self._numbers_of_leader: dict[str, int] = {}  # by id of rank 0
        self._ended_early: dict[int, OmniError] = {}  # ended on rank 0 before they were submitted here
        self._step: Future[StepOutput] | None = None
        self._stopped = threading.Event()
        self._last_message_at = time.monotonic()
        super().__init__(world, timeout_s, startup_timeout_s, on_fault)

    def execute_step(self, scheduler_output: SchedulerOutput) -> Future[StepOutput]:
        """Return a future of the next news about this rank's requests."""
        for request in scheduler_output.new_requests:
            if request.request_id not in self._numbers:
                self.submit_request(request)
            self._own_requests[self._numbers[request.request_id]].is_given = True
        step: Future[StepOutput] = Future()
        step.set_running_or_notify_cancel()
        with self._changed:
            fault = self.fault
            if fault is None:
                self._step = step
        if fault is not None:
            step.set_exception(fault)
        self._report_to_engine()
        return step

    def interrupt(self) -> None:
        """Let `execute_step` return now. The step of rank 0 is not interrupted."""
        self._report_to_engine(even_nothing=True)

    def submit_request(self, request: OmniDiffusionRequest) -> None:
        """Number a request of this rank's engine."""
        fields = request_fields(request)
        with self._order:
            number = self._ledgers["request"].count(self.rank) + 1
            with self._changed:
                self._numbers[request.request_id] = number
                self._own_requests[number] = _OwnRequest(request)
                if (error := self._ended_early.pop(number, None)) is not None:
                    self._end_early(number, error)
            self._announce("request", fields)

    def end_request(self, request_id: str, error: OmniError | None) -> None:
        """Handle the end of a request in this rank's engine. Rank 0 may still run it, with this rank."""
        with self._changed:
            number = self._numbers.pop(request_id, None)
            if number is None or number not in self._own_requests:
                return
            self._own_requests[number].is_over = True
            if self._own_requests[number].output is not None:
                del self._own_requests[number]

    def receive(self, rank: int, message: Any) -> None:
        """Handle a message from rank 0."""
        self._last_message_at = time.monotonic()
        match message:
            case Announcement(kind, fields):
                self._note(kind, 0, fields)
            case Step():
                self._in_turn(self._follow, message)
            case Call():
                self._in_turn(self._follow_call, message)
            case Results(number, replies):
                self._finish_call(number, replies)
            case Ended(number, error):
                self._has_ended(number, error)
                self._report_to_engine()
            case Broken(text, trace):
                self.fail(RankGroupError(text, worker_traceback=trace), tell=False)
            case Stop():
                self._stop(message)

    def lost(self, rank: int) -> None:
        """Handle the end of the connection to rank 0. After `Stop` it is expected."""
        was_stopped = self._stopped.is_set()
        self._stopped.set()
        if not was_stopped:
            super().lost(rank)

    def tick(self) -> None:
        """Check the time limits."""
        super().tick()
        now = time.monotonic()
        silence_s = max(self._timeout_s, _LEAST_SILENCE_S)
        if now - self._last_message_at > silence_s and not self._stopped.is_set():
            peer = self.world.peers[0]
            self.fail(RankGroupError(f"Rank 0 ({peer}) was not heard of for {silence_s:g} s: it is stopped, or lost."))
        with self._changed:
            late = [
                call for call in self._calls.values() if call.own is not None and call.replied_at + call.timeout_s < now
            ]
        for call in late[:1]:
            self.fail(
                RankGroupError(
                    f"Rank 0 did not return from call number {call.number} ({call.name!r}) within {call.timeout_s:g} s "
                    f"after rank {self.rank} had."
                )
            )

    def _compared(self) -> Iterable[int]:
        return (0, self.world.group.rank)

    def _begin_call(self, call: PendingCall) -> None:
        pass  # rank 0 decides when

    def _say_goodbye(self) -> None:
        if self.fault is None and not self._stopped.is_set():
            self._connections.send(self.counts())
            # Rank 0 may need this rank until the end of its step.
            self._stopped.wait(_GOODBYE_S)

    def _fail_step(self, error: OmniError) -> None:
        with self._changed:
            step, self._step = self._step, None
        if step is not None:
            step.set_exception(error)

    def _stop(self, message: Stop) -> None:
        theirs = Leaving(message.requests, message.calls)
        was_closing = self.is_closing
        if was_closing:
            self._warn_of_difference(0, theirs)
        else:
            ours = self.counts()
            self._in_turn(self._close_after_stop, theirs, ours)
        self._stopped.set()

    def _in_turn(self, function: Callable[..., Any], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # this rank has closed
            self._thread.submit(function, *arguments)

    # The worker's thread.

    def _follow(self, message: Step) -> None:
        with contextlib.suppress(OmniError):  # `_run` has reported it to all ranks
            self._take_output(self._run(lambda: self._worker_step(message)))
            self._report_to_engine()

    def _worker_step(self, message: Step) -> StepOutput:
        requests = []
        with self._changed:
            for number, identity in message.new.items():
                self._numbers_of_leader[identity.request_id] = number
                requests.append(with_identity(self._own_requests[number].request, identity))
        output: StepOutput = self.worker.execute_step(SchedulerOutput(requests, message.ended, message.waves))
        return output

    def _take_output(self, output: StepOutput) -> None:
        with self._changed:
            for request_id in output.started:
                self._own_requests[self._numbers_of_leader[request_id]].has_started = True
            for progress in output.progress:
                own = self._own_requests[self._numbers_of_leader[progress.request_id]]
                own.progress = dataclasses.replace(progress, request_id=own.request.request_id)
            for end in output.finished:
                number = self._numbers_of_leader.pop(end.request_id)
                self._end(number, end)

    def _end(self, number: int, end: OmniRequestOutput) -> None:
        own = self._own_requests[number]
        if own.is_over:
            del self._own_requests[number]
            return
        if end.finish_reason in ("aborted", "timeout"):  # the message must name the id of this rank
            reason = end.finish_reason
            end = dataclasses.replace(OmniRequestOutput.ended(own.request, reason, end.metrics), seed=end.seed)
        values = end.output if self._keeps_outputs else {}
        own.output = dataclasses.replace(end, request_id=own.request.request_id, output=values)

    def _follow_call(self, message: Call) -> None:
        with self._changed:
            call = self._calls.get(message.number)
        if call is None or self.fault is not None:
            return
        self._make_call(call, message.identities)
        self._send_result(call, Reply)

    def _close_after_stop(self, theirs: Leaving, ours: Leaving) -> None:
        """Rank 0 has closed its engine: close the worker and the connection, so that rank 0 need not wait."""
        error = RankGroupError(
            f"Rank 0 has closed its engine after {theirs.requests} requests and {theirs.calls} calls; this is rank "
            f"{self.rank}, which had asked for {ours.requests} requests and {ours.calls} calls by then."
        )
        with self._changed:
            if self.fault is not None or self.is_closing:
                return
        super()._end_worker()
        self.fail(error, tell=False)
        self._connections.hang_up(0)

    # For the engine.

    def _has_ended(self, number: int, error: OmniError) -> None:
        """Handle a request that has ended on rank 0 before it was started."""
        with self._changed:
            if number > self._ledgers["request"].count(self.rank) and number not in self._own_requests:
                self._ended_early[number] = error
            else:
                self._end_early(number, error)

    def _end_early(self, number: int, error: OmniError) -> None:
        if (own := self._own_requests.get(number)) is None:
            return
        if isinstance(error, RequestAbortedError):
            self._end(number, OmniRequestOutput.ended(own.request, "aborted"))
        elif isinstance(error, RequestTimeoutError):
            self._end(number, OmniRequestOutput.ended(own.request, "timeout"))
        else:
            self._end(number, OmniRequestOutput.failed(own.request, error))

    def _report_to_engine(self, even_nothing: bool = False) -> None:
        """Complete the engine's step if there is news.

        Args:
            even_nothing: Complete it also without news.
        """
        with self._changed:
            if self._step is None:
                return
            output = StepOutput()
            for number, own in list(self._own_requests.items()):
                if not own.is_given:
                    continue
                name = own.request.request_id
                if own.has_started:
                    output.started.append(name)
                    own.has_started = False
                if own.progress is not None:
                    output.progress.append(own.progress)
                    own.progress = None
                if own.output is not None:
                    output.finished.append(own.output)
                    del self._own_requests[number]
                    self._numbers.pop(name, None)
            if not (even_nothing or output.started or output.progress or output.finished):
                return
            step, self._step = self._step, None
        step.set_result(output)
