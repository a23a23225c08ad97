"""The engine's thread: the one place where the scheduler, the running steps and the handles are touched."""

from __future__ import annotations

import collections
import functools
import heapq
import itertools
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from omni_core.config import OmniDiffusionConfig
from omni_core.engine.handle import RequestEvent, RequestHandle
from omni_core.errors import (
    EngineClosedError,
    EngineDeadError,
    EngineOverloadedError,
    ExecutorError,
    OmniError,
    RequestError,
    WorkerDiedError,
)
from omni_core.executor import DiffusionExecutor
from omni_core.log import get_logger
from omni_core.outputs import EndReason, EngineStats, OmniRequestOutput, StepOutput
from omni_core.plugins import PluginRegistry
from omni_core.request import OmniDiffusionRequest
from omni_core.scheduler import LostRequest, Scheduler

log = get_logger(__name__)

# Seconds that closing waits for the engine's thread; it only handles messages, so it ends at once unless a plugin's
# observer or a caller's callback holds it up.
_JOIN_TIMEOUT_S = 10.0
# Waves that one call may run where it can be interrupted; the scheduler sees to it that a call stays short.
_MOST_WAVES = 32


@dataclass(slots=True)
class _Live:
    """A request that has not ended."""

    handle: RequestHandle
    submitted_at: float
    started_at: float | None = None
    num_retries: int = 0


class EngineCore:
    """Drives the scheduler and the executor from one thread, fed by messages.

    It knows nothing of `DiffusionEngine`, so that an engine which nobody refers to any more can be collected and
    closed while this thread still runs.

    Args:
        config: The configuration.
        executor: What runs the steps; owned and closed by the core.
        plugins: Whose observers are told.
    """

    def __init__(self, config: OmniDiffusionConfig, executor: DiffusionExecutor, plugins: PluginRegistry) -> None:
        self.executor = executor
        self._config = config
        self._plugins = plugins
        self._scheduler = Scheduler(executor.num_replicas, config.max_num_seqs, config.max_batch_wait_ms / 1e3)
        self._messages: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._steps: dict[int, Future[StepOutput]] = {}
        # Entries of ended requests stay until their time comes; the number keeps `_Live` from being compared.
        self._deadlines: list[tuple[float, int, _Live]] = []
        self._deadline_numbers = itertools.count()
        # Guards `_live` and `_closed` against callers' threads; everything else belongs to the engine's thread.
        self._lock = threading.Lock()
        self._live: dict[str, _Live] = {}
        self._ended: collections.Counter[str] = collections.Counter()
        self._closed = False
        self._close_lock = threading.Lock()
        self._fault: BaseException | None = None
        executor.on_change(lambda: self._messages.put(_nothing))
        self._thread = threading.Thread(target=self._run, name="omni-engine", daemon=True)
        self._thread.start()

    # For callers, from any thread.

    def submit(
        self, requests: list[OmniDiffusionRequest], make_handle: Callable[[OmniDiffusionRequest], RequestHandle]
    ) -> list[RequestHandle]:
        """Accept all of the requests, or none.

        Raises:
            EngineClosedError: The engine is closed.
            EngineDeadError: Its thread died.
            EngineOverloadedError: As many as may wait are waiting.
            RequestError: An id is in use.
        """
        now = time.monotonic()
        with self._lock:
            self.check_open()
            self._refuse_overload(len(requests))
            new: dict[str, _Live] = {}
            for request in requests:
                if request.request_id in self._live or request.request_id in new:
                    raise RequestError(
                        f"Request {request.request_id!r} is running already; give the second one another request_id."
                    )
                new[request.request_id] = _Live(make_handle(request), now)
            self._live.update(new)
            self._messages.put(functools.partial(self._accept, list(new.values())))
        return [live.handle for live in new.values()]

    def _refuse_overload(self, number: int) -> None:
        most_waiting = self._config.max_waiting
        if most_waiting is None:
            return
        places = self.executor.num_replicas * self._config.max_num_seqs
        if len(self._live) + number > most_waiting + places:
            raise EngineOverloadedError(
                f"{len(self._live)} requests are waiting or running, and no more than max_waiting = {most_waiting} may "
                f"wait besides the {places} that run. Try again when some have ended, or raise max_waiting."
            )

    def stats(self) -> EngineStats:
        """Return the numbers of requests, without those of the workers."""
        with self._lock:
            scheduler = self._scheduler
            parked = scheduler.num_parked
            return EngineStats(
                waiting=scheduler.num_waiting,
                running=scheduler.num_running - parked,
                parked=parked,
                ended=dict(self._ended),
            )

    def abort(self, request_id: str) -> None:
        """End a request early; does nothing if it has ended or was never there."""
        self._messages.put(functools.partial(self._end_early, request_id, "aborted"))

    def check_open(self) -> None:
        """Return if requests can be taken.

        Raises:
            EngineClosedError: The engine is closed.
            EngineDeadError: Its thread died.
        """
        if self._fault is not None:
            raise EngineDeadError(
                f"The engine stopped by a fault of its own: {type(self._fault).__name__}: {self._fault}. "
                "Close it and make a new one; please report this."
            ) from self._fault
        if self._closed:
            raise EngineClosedError("The engine is closed; make a new one.")

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in the engine's thread: in an observer or a callback."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """End what runs, fail what waits, shut the executor down. Later calls wait for the first and do nothing."""
        if self._closed and self.is_current:
            return  # whoever closes waits for this very thread
        with self._close_lock:
            with self._lock:
                if self._closed:
                    return
                self._closed = True
            self._messages.put(_nothing)
            if not self.is_current:
                self._thread.join(_JOIN_TIMEOUT_S)
            try:
                self.executor.close()
            finally:
                self._fail_all(EngineClosedError("The engine was closed before this request ended."))
                self._plugins.notify("omni_engine_closed", config=self._config)

    # The engine's thread.

    def _run(self) -> None:
        try:
            while not self._closed:
                self._receive()
                self._expire()
                self._dispatch()
        except BaseException as error:
            log.error("the engine's thread died", exc_info=True)
            with self._lock:
                self._fault = error
            self._fail_all(
                EngineDeadError(f"The engine stopped by a fault of its own: {type(error).__name__}: {error}")
            )
        else:
            self._fail_all(EngineClosedError("The engine was closed before this request ended."))

    def _receive(self) -> None:
        deadline = self._deadlines[0][0] if self._deadlines else None
        batch_deadline = self._scheduler.batch_deadline()
        if batch_deadline is not None and len(self._steps) < self.executor.num_replicas:
            deadline = min(batch_deadline, deadline or batch_deadline)
        timeout = max(0.0, deadline - time.monotonic()) if deadline is not None else None
        try:
            self._messages.get(timeout=timeout)()
            while True:
                self._messages.get_nowait()()
        except queue.Empty:
            pass

    def _expire(self) -> None:
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, live = heapq.heappop(self._deadlines)
            request_id = live.handle.request_id
            if self._live.get(request_id) is live:
                self._end_early(request_id, "timeout")

    def _dispatch(self) -> None:
        if self._closed:
            return
        fault = self.executor.fault
        if fault is not None:
            for request in self._scheduler.take_waiting():
                self._finish(OmniRequestOutput.failed(request, fault))
        asleep = self.executor.is_sleeping
        most_waves = _MOST_WAVES if self.executor.can_interrupt else 1
        now = time.monotonic()
        for replica in range(self.executor.num_replicas):
            if replica in self._steps or not self.executor.is_ready(replica):
                continue
            scheduler_output = self._scheduler.schedule(replica, now, asleep=asleep, most_waves=most_waves)
            if scheduler_output is None:
                continue
            try:
                future = self.executor.execute_step(replica, scheduler_output)
            except Exception as error:
                future = Future()
                future.set_exception(error)
            self._steps[replica] = future
            future.add_done_callback(functools.partial(self._report_step, replica))

    def _report_step(self, replica: int, future: Future[StepOutput]) -> None:
        """Pass the end of a step on from whatever thread it ended in."""
        self._messages.put(functools.partial(self._step_done, replica, future))

    def _accept(self, accepted: list[_Live]) -> None:
        for live in accepted:
            request = live.handle.request
            if request.timeout_s is not None:
                deadline = live.submitted_at + request.timeout_s
                heapq.heappush(self._deadlines, (deadline, next(self._deadline_numbers), live))
            live.handle._add_event(RequestEvent("queued", request.request_id))
            self._plugins.notify("omni_request_queued", request=request)
            self._scheduler.add_request(request, time.monotonic())
        self._interrupt_steps()

    def _end_early(self, request_id: str, reason: EndReason) -> None:
        live = self._live.get(request_id)
        if live is None:
            return
        was_waiting = self._scheduler.end_request(request_id, reason)
        if not was_waiting:
            self._interrupt_steps()
        # An executor of whole requests cannot stop one: the caller is told now, and what comes later is dropped.
        if was_waiting or not self.executor.runs_diffusion_worker:
            self._finish(OmniRequestOutput.ended(live.handle.request, reason))

    def _interrupt_steps(self) -> None:
        """Let the running steps come back early: there is something new to tell them."""
        if self.executor.can_interrupt:
            for replica in self._steps:
                self.executor.interrupt(replica)

    def _step_done(self, replica: int, future: Future[StepOutput]) -> None:
        del self._steps[replica]
        try:
            step_output = future.result()
            if not isinstance(step_output, StepOutput):
                raise ExecutorError(
                    f"{self.executor.name}.execute_step broke its contract: its future holds a "
                    f"{type(step_output).__name__}, not a StepOutput."
                )
        except BaseException as error:  # CancelledError among them
            self._replica_failed(replica, error)
            return
        self._scheduler.update_from_output(replica, step_output)
        for request_id in step_output.started:
            self._started(request_id, replica)
        for progress in step_output.progress:
            live = self._live.get(progress.request_id)
            if live is not None:
                live.handle._add_event(
                    RequestEvent("step", progress.request_id, progress.step, progress.num_steps, progress.preview)
                )
                self._plugins.notify(
                    "omni_request_step",
                    request_id=progress.request_id,
                    step=progress.step,
                    num_steps=progress.num_steps,
                )
        for output in step_output.finished:
            self._finish(output)

    def _started(self, request_id: str, replica: int) -> None:
        live = self._live.get(request_id)
        if live is not None and live.started_at is None:
            live.started_at = time.monotonic()
            live.handle._add_event(RequestEvent("started", request_id))
            self._plugins.notify("omni_request_started", request_id=request_id, replica=replica)

    def _replica_failed(self, replica: int, error: BaseException) -> None:
        for lost in self._scheduler.take_running(replica):
            if lost.end_reason is not None:
                self._finish(OmniRequestOutput.ended(lost.request, lost.end_reason))
            elif isinstance(error, WorkerDiedError):
                self._retry(lost, error)
            else:
                self._finish(OmniRequestOutput.failed(lost.request, self._step_error(lost.request, error)))

    def _retry(self, lost: LostRequest, error: WorkerDiedError) -> None:
        """Let a request run again from its seed, unless workers have died under it too often."""
        live = self._live.get(lost.request.request_id)
        if live is None:
            return
        if lost.was_started:
            if live.num_retries >= self._config.max_retries:
                reason = WorkerDiedError(
                    f"Request {lost.request.request_id!r} was given up: the worker died under it "
                    f"{live.num_retries + 1} times (max_retries = {self._config.max_retries}). "
                    f"The last time: {error.message}",
                    replica=error.replica,
                    rank=error.rank,
                    worker_traceback=error.worker_traceback,
                )
                self._finish(OmniRequestOutput.failed(lost.request, reason))
                return
            live.num_retries += 1
            live.handle._add_event(RequestEvent("retrying", lost.request.request_id))
            log.warning(
                "request is run again", request_id=lost.request.request_id, retry=live.num_retries, reason=error.message
            )
        self._scheduler.requeue(lost)

    def _step_error(self, request: OmniDiffusionRequest, error: BaseException) -> OmniError:
        if isinstance(error, OmniError):
            return error
        reason = ExecutorError(
            f"Request {request.request_id!r}: the executor {self.executor.name} raised {type(error).__name__}: {error}"
        )
        reason.__cause__ = error
        return reason

    def _finish(self, output: OmniRequestOutput) -> None:
        with self._lock:
            live = self._live.pop(output.request_id, None)
            if live is None:
                return  # ended before: aborted under an executor of whole requests
            self._ended[output.finish_reason] += 1
        metrics = output.metrics
        worked_s = metrics.encode_s + metrics.denoise_s + metrics.decode_s
        metrics.num_retries = live.num_retries
        metrics.queue_s = max(0.0, time.monotonic() - live.submitted_at - worked_s)
        callbacks = live.handle._finish(output)
        if output.finish_reason in ("finished", "aborted"):
            self._plugins.notify("omni_request_finished", output=output)
        else:
            self._plugins.notify("omni_request_failed", request_id=output.request_id, error=output.error)
        for callback in callbacks:
            try:
                callback(live.handle)
            except Exception:
                log.warning("a done callback raised", request_id=output.request_id, exc_info=True)

    def _fail_all(self, error: OmniError) -> None:
        with self._lock:
            live = list(self._live.values())
        for entry in live:
            self._finish(OmniRequestOutput.failed(entry.handle.request, error))


def _nothing() -> None:
    """Wake the engine's thread without asking for anything."""
