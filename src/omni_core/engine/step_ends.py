"""Handles the end of a step: progress, ended requests, and retries of the requests of a replica that failed."""

from __future__ import annotations

import time
from concurrent.futures import Future

from omni_core.config import OmniDiffusionConfig
from omni_core.engine.bookkeeping import Live, ReplicaState
from omni_core.engine.checked_executor import CheckedExecutor
from omni_core.engine.estimates import Estimates
from omni_core.engine.live_requests import LiveRequests
from omni_core.engine.notices import Notices
from omni_core.error_text import described_error
from omni_core.errors import ContractError, ExecutorError, OmniError, WorkerDiedError
from omni_core.outputs import OmniRequestOutput, StepOutput
from omni_core.request import OmniDiffusionRequest
from omni_core.scheduler import Scheduler
from omni_core.scheduler_state import LostRequest

# Seconds for which a replica that broke its contract gets no requests, if there are other replicas.
_BROKEN_PAUSE_S = 1.0


class StepEnds:
    """Passes the result of a step to the scheduler and to the requests. In the engine's thread.

    Args:
        config: The configuration.
        executor: Checks the results of steps.
        scheduler: The scheduler.
        replicas: The replicas, by index.
        requests: The requests that have not ended.
        notices: Notifies callers and observers.
        estimates: Learns from the steps.
    """

    def __init__(
        self,
        config: OmniDiffusionConfig,
        executor: CheckedExecutor,
        *,
        scheduler: Scheduler,
        replicas: list[ReplicaState],
        requests: LiveRequests,
        notices: Notices,
        estimates: Estimates,
    ) -> None:
        self._max_retries = config.max_retries
        self._executor = executor
        self._scheduler = scheduler
        self._replicas = replicas
        self._requests = requests
        self._notices = notices
        self._estimates = estimates

    def done(self, index: int, future: Future[StepOutput]) -> None:
        """Handle the end of a step.

        Args:
            index: Index of the replica.
            future: The future that `execute_step` returned, done.
        """
        replica = self._replicas[index]
        if replica.step is not future:
            return  # the future called back twice
        replica.step = None
        try:
            step = self._executor.check_step(index, future, replica.requests, replica.strays)
        except BaseException as error:  # CancelledError among them
            self.replica_failed(index, error)
            if isinstance(error, ContractError) and len(self._replicas) > 1:
                # It may fail every request at once: without a pause it would take the requests of the other replicas.
                replica.paused_until = time.monotonic() + _BROKEN_PAUSE_S
            return
        step_output = step.output
        self._scheduler.update_from_output(index, step_output)
        seconds = time.monotonic() - replica.begun_at
        self._estimates.step_done(index, seconds, step_output)
        for request_id in step_output.started:
            if self._requests.has(live := replica.placed.get(request_id)):
                self._notices.started(live, index)
        self._notices.step_done(index, seconds, step_output)
        for progress in step_output.progress:
            if self._requests.has(live := replica.placed.get(progress.request_id)):
                self._notices.progressed(live, progress)
        for request_id, malformed in step.malformed.items():
            if (live := replica.placed.get(request_id)) is not None:
                live.error = malformed  # it fails with this once the replica has ended it
                self._scheduler.end_request(request_id, "aborted")
        for request_id, reason in step_output.suspects.items():
            if (made := self._requests.get(request_id)) is not None and made.is_made:
                made.suspect = reason  # it was not returned yet: its own output will say so
            else:
                self._notices.suspected(request_id, reason)
        ended = [(replica.placed.get(output.request_id), output) for output in step_output.finished]
        replica.end(step_output, time.monotonic())
        self._requests.finish(ended)

    def replica_failed(self, index: int, error: BaseException) -> None:
        """Take all requests away from a replica: they are retried if a worker died, and fail otherwise.

        Args:
            index: Index of the replica.
            error: The error of the replica.
        """
        replica = self._replicas[index]
        placed = dict(replica.placed)
        replica.lose(workers_go_on=not (isinstance(error, WorkerDiedError) or self._executor.runs_whole_requests))
        self._estimates.lost(index)
        ended: list[tuple[Live | None, OmniRequestOutput]] = []
        for lost in self._scheduler.take_running(index):
            live = placed.get(lost.request.request_id)
            if lost.end_reason is not None:
                ended.append((live, OmniRequestOutput.ended(lost.request, lost.end_reason)))
            elif not isinstance(error, WorkerDiedError):
                method = f"{self._executor.name}.{self._executor.step_method}"
                ended.append((live, OmniRequestOutput.failed(lost.request, _step_error(lost.request, method, error))))
            elif self._requests.has(live):
                reason = self._retry(index, lost, live, error)
                if reason is not None:
                    ended.append((live, OmniRequestOutput.failed(lost.request, reason)))
        self._requests.finish(ended)

    def _retry(self, index: int, lost: LostRequest, live: Live, error: WorkerDiedError) -> WorkerDiedError | None:
        """Retry a request from its seed, or return the error why not."""
        reason = _reason_to_give_up(lost, live, self._max_retries, error)
        if reason is not None:
            return reason
        if lost.was_started:
            live.num_deaths += lost.blame != "none"
            live.num_retries += 1
            self._notices.retrying(live, index, error)
        self._scheduler.requeue(lost)
        return None


def _reason_to_give_up(lost: LostRequest, live: Live, most: int, error: WorkerDiedError) -> WorkerDiedError | None:
    """Return the error of a request that is not retried, because too many workers died under it; None to retry it.

    Args:
        lost: The request.
        live: Its record.
        most: Maximum number of retries (`max_retries`).
        error: The death of the worker this time.
    """
    # If other requests ran on the worker, one of them may be the cause: only a death that is its own counts.
    is_own = lost.blame == "alone" or (most == 0 and lost.blame != "none")
    if not lost.was_started or live.num_deaths < most or not is_own:
        return None
    return WorkerDiedError(
        f"Request {lost.request.request_id!r} was given up: the worker died under it "
        f"{live.num_deaths + 1} times (max_retries = {most}). The last time: {error.message}",
        replica=error.replica,
        rank=error.rank,
        worker_traceback=error.worker_traceback,
    )


def _step_error(request: OmniDiffusionRequest, method: str, error: BaseException) -> OmniError:
    """Return the error of a request whose step raised.

    Args:
        request: The request.
        method: The method that was called, such as `InlineExecutor.execute_step`.
        error: The exception that it raised.
    """
    if isinstance(error, OmniError):
        return error
    reason = ExecutorError(f"Request {request.request_id!r}: {method} raised {described_error(error)}")
    reason.__cause__ = error
    return reason
