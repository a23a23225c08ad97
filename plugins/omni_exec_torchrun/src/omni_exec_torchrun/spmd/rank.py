"""The base class of rank 0 and the other ranks of an SPMD engine."""

from __future__ import annotations

import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from omni_core import OmniDiffusionRequest
from omni_core.calls import WorkerReply, call_error
from omni_core.errors import ExecutorError, OmniError, RankGroupError, RPCError
from omni_core.log import get_logger
from omni_core.outputs import SchedulerOutput, StepOutput
from omni_core.serial_thread import SerialThread
from omni_exec_torchrun.spmd.connections import RankConnections, connect
from omni_exec_torchrun.spmd.ledger import Fields, Ledger
from omni_exec_torchrun.spmd.messages import Announcement, Broken, Identity, Kind, Leaving
from omni_exec_torchrun.spmd.world import SpmdWorld

log = get_logger(__name__)

# Loading and describing the pipeline are calls -1 and 0; the first call of the program is number 1.
_FIRST_CALL = -1
# Seconds to wait for the reason after another rank has failed: the message may come later than the failure.
_REASON_S = 2.0
# Seconds that closing waits for the running call of the worker.
_CLOSE_S = 30.0


@dataclass(slots=True)
class PendingCall:
    """A call that this rank has submitted.

    Attributes:
        name: Name of the call in messages.
        function: Makes the call, with the worker and the identities of its requests on rank 0.
        timeout_s: Seconds that a rank may take longer than another.
        reply_ranks: The ranks whose results are returned.
        identities: The identities of its requests on this rank.
        number: Its number.
        future: A future of the replies of all ranks.
        own: The reply of this rank.
        replied_at: When that reply was made.
    """

    name: str
    function: Callable[[Any, list[Identity]], Any]
    timeout_s: float
    reply_ranks: frozenset[int]
    identities: list[Identity] = field(default_factory=list)
    number: int = 0
    future: Future[list[WorkerReply]] = field(default_factory=Future)
    own: WorkerReply | None = None
    replied_at: float = 0.0


class SpmdRank(ABC):
    """Owns this rank's worker, which has a separate thread, and the connections to the other ranks.

    Args:
        world: The ranks.
        timeout_s: Seconds that one rank may wait for another.
        startup_timeout_s: Seconds that it may wait while the pipeline is loaded.
        on_fault: Called when the ranks cannot continue together.
    """

    def __init__(
        self, world: SpmdWorld, timeout_s: float, startup_timeout_s: float, on_fault: Callable[[], None]
    ) -> None:
        self.world = world
        self.rank = world.group.rank
        self.worker: Any = None
        self.fault: OmniError | None = None
        self.is_closing = False
        self._is_loading = False
        self._timeout_s = timeout_s
        self._on_fault = on_fault
        self._changed = threading.Condition()  # guards all attributes below
        self._order = threading.RLock()  # announcements are sent in the order of their numbers
        self._ledgers: dict[Kind, Ledger] = {
            "request": Ledger("Request", self._compared()),
            "call": Ledger("Call", self._compared(), _FIRST_CALL),
        }
        self._calls: dict[int, PendingCall] = {}
        self._thread = SerialThread(f"omni-spmd-worker-{self.rank}")
        tick_s = min(1.0, timeout_s / 4)
        is_alone = world.group.world_size == 1
        connected = {} if is_alone else connect(world.group, world.host, startup_timeout_s)
        self._connections = RankConnections(connected, self, tick_s)
        if not is_alone:
            self._connections.start()

    # For the executor, from any thread.

    @abstractmethod
    def execute_step(self, scheduler_output: SchedulerOutput) -> Future[StepOutput]:
        """On rank 0, run a step. On other ranks, return the news about the requests of this rank."""

    @abstractmethod
    def interrupt(self) -> None:
        """Let a running `execute_step` return early."""

    @abstractmethod
    def submit_request(self, request: OmniDiffusionRequest) -> None:
        """Number a request of this rank's engine, before `execute_step` gets it."""

    @abstractmethod
    def end_request(self, request_id: str, error: OmniError | None) -> None:
        """Handle the end of a request in this rank's engine."""

    def call(self, call: PendingCall, fields: dict[str, str]) -> Future[list[WorkerReply]]:
        """Submit a call on all ranks.

        Args:
            call: The call.
            fields: The fields that must be the same on all ranks.
        """
        with self._order:
            call.number = self._ledgers["call"].count(self.rank) + 1
            call.future.set_running_or_notify_cancel()
            with self._changed:
                if self.fault is not None:
                    raise self.fault
                self._calls[call.number] = call
            self._begin_call(call)
            self._announce("call", fields)
        return call.future

    def counts(self) -> Leaving:
        """Return the number of requests and calls of this rank."""
        return Leaving(*(ledger.count(self.rank) for ledger in self._ledgers.values()))

    def close(self) -> None:
        """Leave the other ranks, and close the worker."""
        with self._changed:
            self.is_closing = True
            self._changed.notify_all()
        try:
            self._say_goodbye()
            # Loading a pipeline cannot be stopped: the worker is closed after it.
            ended = self._thread.close(0.0 if self._is_loading else _CLOSE_S, last=self._end_worker)
            if not ended:
                self.world.leave(broken=True)
        finally:
            self._connections.close()
        self._fail_calls(ExecutorError("The engine was closed."))

    def fail(self, error: OmniError, tell: bool = True) -> OmniError:
        """End the work with the other ranks after a fault. Only the first reason counts; it is returned.

        Args:
            error: The reason.
            tell: Whether to notify the other ranks.
        """
        with self._changed:
            if self.fault is not None:
                return self.fault
            if self.is_closing:
                return error
            self.fault = error
            self._changed.notify_all()
        if tell:
            self._connections.send(Broken(error.message, error.worker_traceback))
        with contextlib.suppress(RuntimeError):  # already closed
            self._thread.submit(self.world.leave, True)
        if self.worker is not None and self.worker.device.type != "cpu":
            self.world.leave(broken=True)  # otherwise the worker's thread would wait for NCCL forever
        self._fail_calls(error)
        self._fail_step(error)
        self._on_fault()
        return error

    # Called by `RankConnections`, in its thread.

    @abstractmethod
    def receive(self, rank: int, message: Any) -> None:
        """Handle a message from `rank`."""

    def lost(self, rank: int) -> None:
        """Handle the end of the connection to `rank`."""
        peer = self.world.peers[rank]
        error = f"Rank {rank} ({peer}) is gone: it ended without a word. Its own output and torchrun's say why."
        self.fail(RankGroupError(error))

    def tick(self) -> None:
        """Check the time limits."""
        with self._changed:
            late = next(filter(None, (ledger.overdue(self._timeout_s) for ledger in self._ledgers.values())), None)
        if late is not None:
            self.fail(RankGroupError(late))

    # For subclasses.

    @abstractmethod
    def _compared(self) -> Iterable[int]:
        """Return the ranks whose requests and calls are announced to this rank."""

    @abstractmethod
    def _begin_call(self, call: PendingCall) -> None:
        """Schedule a submitted call."""

    @abstractmethod
    def _say_goodbye(self) -> None:
        """Leave the other ranks before the worker's thread ends."""

    def _end_worker(self) -> None:
        """Close the worker. The last call in the worker's thread."""
        if self.worker is not None:
            self.worker.close()
        self.world.leave(broken=self.fault is not None)

    @abstractmethod
    def _fail_step(self, error: OmniError) -> None:
        """Fail the step that waits for other ranks, unless it fails by itself."""

    def _announce(self, kind: Kind, fields: dict[str, str]) -> None:
        with self._order:
            self._note(kind, self.rank, fields)
            self._connections.send(Announcement(kind, fields))

    def _note(self, kind: Kind, rank: int, fields: Fields) -> None:
        with self._changed:
            complaint = self._ledgers[kind].note(rank, fields)
            self._changed.notify_all()
        if complaint is not None:
            self.fail(RankGroupError(complaint))

    def _make_call(self, call: PendingCall, identities: list[Identity]) -> WorkerReply:
        self._is_loading = call.number == _FIRST_CALL
        try:
            value = call.function(self.worker, identities)
        except Exception as error:
            call.own = WorkerReply(call.number, error=call_error(call.name, error))
        else:
            call.own = WorkerReply(call.number, value)
        self._is_loading = False
        call.replied_at = time.monotonic()
        return call.own

    def _send_result(self, call: PendingCall, make_message: Callable[[WorkerReply], Any]) -> None:
        """Send this rank's reply; if it cannot be pickled, send an error."""
        assert call.own is not None
        reply = call.own
        if reply.error is None and self.rank not in call.reply_ranks:
            reply = WorkerReply(call.number)
        try:
            self._connections.send(make_message(reply))
        except RPCError as error:
            call.own = WorkerReply(
                call.number, error=RPCError(f"The result of {call.name!r} cannot be sent to other ranks: {error}")
            )
            self._connections.send(make_message(call.own))

    def _finish_call(self, number: int, replies: list[WorkerReply]) -> None:
        with self._changed:
            call = self._calls.pop(number, None)
        if call is not None:
            assert call.own is not None
            call.future.set_result([*replies[: self.rank], call.own, *replies[self.rank + 1 :]])

    def _fail_calls(self, error: OmniError) -> None:
        with self._changed:
            calls, self._calls = self._calls, {}
        for call in calls.values():
            call.future.set_exception(error)

    def _run(self, function: Callable[[], StepOutput]) -> StepOutput:
        """Run a step. If it fails, it fails on all ranks, with the reason if it is known."""
        if self.fault is not None:
            raise self.fault
        try:
            return function()
        except RankGroupError as error:
            with self._changed:
                self._changed.wait_for(lambda: self.fault is not None or self.is_closing, _REASON_S)
            raise self.fail(error) from error
        except Exception as error:
            reason = call_error("execute_step", error)
            raise self.fail(
                RankGroupError(f"Rank {self.rank}: {reason.message}", worker_traceback=reason.worker_traceback)
            ) from error

    def _warn_of_difference(self, rank: int, theirs: Leaving) -> None:
        ours = self.counts()
        if (ours.requests, ours.calls) != (theirs.requests, theirs.calls) and self.fault is None:
            log.warning(
                f"the ranks have not asked for the same: rank {self.rank} for {ours.requests} requests and "
                f"{ours.calls} calls, rank {rank} for {theirs.requests} and {theirs.calls}"
            )
