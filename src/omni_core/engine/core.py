"""The engine's thread, which alone uses the scheduler, the running steps and the handles."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from omni_core.config import OmniDiffusionConfig
from omni_core.engine.bookkeeping import Live, Numbers, ReplicaState, TimeLimits
from omni_core.engine.checked_executor import CheckedExecutor
from omni_core.engine.estimates import Estimates
from omni_core.engine.handle import RequestHandle
from omni_core.engine.live_requests import LiveRequests
from omni_core.engine.notices import Notices
from omni_core.engine.output_hooks import OutputHooks
from omni_core.engine.sleeping import Sleeping
from omni_core.engine.step_ends import StepEnds
from omni_core.error_text import described_error
from omni_core.errors import EngineClosedError, EngineDeadError, EngineError, OmniError
from omni_core.hookspecs import Hooks
from omni_core.log import get_logger
from omni_core.outputs import EndReason, EngineStats, OmniRequestOutput, RequestEstimate, StepOutput
from omni_core.own_threads import begin_own_thread, is_own_thread
from omni_core.pipeline_info import PipelineInfo
from omni_core.request import OmniDiffusionRequest
from omni_core.scheduler import Scheduler
from omni_core.timeouts import wait_seconds

log = get_logger(__name__)

# Seconds that closing waits for the engine's thread. It ends at once unless an observer or a callback blocks it.
_JOIN_TIMEOUT_S = 10.0
# Maximum number of waves in one call that can be interrupted. The scheduler keeps calls short.
_MOST_WAVES = 32
# After so many faults of the engine in a row it stops.
_MOST_FAULTS = 5


class EngineCore:
    """Drives the scheduler and the executor from one thread, fed by messages.

    It holds no reference to `DiffusionEngine`, so that an engine without references can be garbage-collected and
    closed while this thread still runs.

    Args:
        config: The configuration.
        executor: The executor. The core owns and closes it.
        hooks: The hooks of the engine.
        sleeping: The sleep level of the workers.
        info: What is known of the pipeline.
    """

    def __init__(
        self,
        config: OmniDiffusionConfig,
        executor: CheckedExecutor,
        hooks: Hooks,
        sleeping: Sleeping,
        info: PipelineInfo | None,
    ) -> None:
        self.executor = executor
        self.sleeping = sleeping
        self._config = config
        self._notices = Notices(hooks, executor, lambda: self.is_current)
        self._scheduler = Scheduler(executor.num_replicas, config.max_num_seqs, config.max_batch_wait_ms / 1e3)
        self._can_interrupt = executor.wrapped.can_interrupt
        self._messages: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._replicas = [ReplicaState() for _ in range(executor.num_replicas)]
        self._time_limits = TimeLimits()
        self._output_hooks = OutputHooks(hooks, self, self._report_made)
        self._estimates = Estimates(info, executor.num_replicas, config.max_num_seqs)
        self._requests = LiveRequests(self._notices, self._output_hooks, self._estimates, self._note_counted)
        self._steps = StepEnds(
            config,
            executor,
            scheduler=self._scheduler,
            replicas=self._replicas,
            requests=self._requests,
            notices=self._notices,
            estimates=self._estimates,
        )
        # Other threads read only this, which the engine's thread publishes.
        self._numbers = Numbers()
        # Guarded by the lock of `_requests`.
        self._closed = False
        # Re-entrant: a signal handler may call `close` in the thread that is closing.
        self._close_lock = threading.RLock()
        self._fault: BaseException | None = None
        # When `_dispatch` last ran, on the monotonic clock: deadlines before that need no wake-up.
        self._looked_at = 0.0
        executor.on_change(lambda: self._messages.put(self._look_again))
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
            EngineOverloadedError: The maximum number of requests is waiting.
            RequestError: An id is in use.
        """
        with self._requests.lock:
            self.check_open()
            places = self.executor.num_replicas * self._config.max_num_seqs
            new = self._requests.add(requests, make_handle, self._config.max_waiting, places)
            self._messages.put(functools.partial(self._accept, new))
        return [live.handle for live in new]

    def stats(self) -> EngineStats:
        """Return the numbers of requests at one moment, without the numbers of the workers."""
        numbers = self._numbers
        return EngineStats(numbers.waiting, numbers.running, numbers.parked, dict(numbers.ended))

    def estimate(self, request: OmniDiffusionRequest) -> RequestEstimate | None:
        """Return when a request will be done; None if that is not known yet, or while the workers sleep."""
        return None if self.sleeping.level > 0 else self._estimates.estimate(request)

    def sleep(self, level: int, timeout: float | None) -> None:
        """Put the workers to sleep. Requests wait until they wake up."""
        try:
            self.sleeping.sleep(self.executor.collective_rpc, level, timeout)
        finally:
            self._messages.put(self._look_again)

    def wake_up(self, timeout: float | None) -> None:
        """Wake the workers up."""
        try:
            self.sleeping.wake_up(self.executor.collective_rpc, timeout)
        finally:
            self._messages.put(self._look_again)

    def abort(self, request_id: str) -> None:
        """End a request early. Does nothing if it has ended or does not exist."""
        self._messages.put(functools.partial(self._end_early, request_id, "aborted"))

    def check_open(self) -> None:
        """Return if requests are accepted.

        Raises:
            EngineClosedError: The engine is closed.
            EngineDeadError: Its thread died.
        """
        if self._fault is not None:
            raise EngineDeadError(
                f"The engine stopped by a fault of its own: {described_error(self._fault)}. "
                "Close it and make a new one; please report this."
            ) from self._fault
        if self._closed:
            raise EngineClosedError("The engine is closed; make a new one.")

    def check_served(self) -> None:
        """Return if requests are served: see `LiveRequests.check_served`."""
        self._requests.check_served()

    @property
    def thread_owners(self) -> tuple[object, ...]:
        """The owners of threads in which user code must not wait for this engine: see `omni_core.own_threads`."""
        return (self, self.executor.wrapped)

    @property
    def is_current(self) -> bool:
        """Whether the current thread is the engine's, as in an observer or a callback."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """End running requests, fail waiting ones, and shut the executor down. Later calls wait for the first one."""
        if self._closed and self.is_current:
            return  # the closing thread waits for this one
        if is_own_thread(self.thread_owners) and not self.is_current:
            # A thread of the executor, whose shutdown waits for this thread: close in another thread.
            threading.Thread(target=self.close, name="omni-close").start()
            return
        with self._close_lock:
            with self._requests.lock:
                if self._closed:
                    return
                self._closed = True
            self._messages.put(lambda: None)  # wakes the thread
            try:
                if not self.is_current:
                    self._thread.join(_JOIN_TIMEOUT_S)
            finally:  # also after Ctrl-C: no later call would close the executor
                self._close_executor()

    def _close_executor(self) -> None:
        self.sleeping.close()
        try:
            self.executor.close()
        finally:
            self._requests.fail_all(EngineClosedError("The engine was closed before this request ended."))
            self._output_hooks.close()
            self._notices.notify("omni_engine_closed", config=self._config)

    # The engine's thread.

    def _run(self) -> None:
        begin_own_thread("runs the engine", self)
        faults = 0
        while not self._closed:
            try:
                self._dispatch()  # first, so that the executor is called in this thread before a request is accepted
                self._publish()
                self._receive()
                self._expire()
            except BaseException as error:
                faults += 1
                if not self._recover(error, faults):
                    return
            else:
                faults = 0
        self._requests.fail_all(EngineClosedError("The engine was closed before this request ended."))

    def _recover(self, error: BaseException, faults: int) -> bool:
        """Fail all requests after a fault of the engine; return whether the engine continues with later ones.

        The state of the current requests is not known after a fault, so none of them continues.
        """
        log.error("a fault in the engine's thread; please report this", exc_info=error)
        what = described_error(error)
        try:
            for index, replica in enumerate(self._replicas):
                self._scheduler.take_running(index)
                replica.lose(workers_go_on=not self.executor.runs_whole_requests)
                if replica.step is not None and replica.step.done():
                    replica.step = None  # the fault may have occurred while its end was handled
            self._scheduler.take_waiting()
            if faults < _MOST_FAULTS:
                self._requests.fail_all(
                    EngineError(f"A fault of the engine's own has ended this request: {what}. Try again.")
                )
                return True
        except BaseException as another:
            error = another
        self._fault = error
        self._requests.fail_all(EngineDeadError(f"The engine stopped by a fault of its own: {what}"))
        return False

    def _receive(self) -> None:
        with contextlib.suppress(queue.Empty):
            self._messages.get(timeout=self._seconds_to_wait())()
            while True:
                self._messages.get_nowait()()

    def _seconds_to_wait(self) -> float | None:
        """Return the seconds until the next deadline; None if there is none."""
        first = self._time_limits.first
        due = [] if first is None else [first]
        idle = [replica for replica in self._replicas if replica.step is None]
        later = [replica.paused_until for replica in idle]
        batch_deadline = self._scheduler.batch_deadline()
        if batch_deadline is not None and idle:
            later.append(batch_deadline)
        due += [moment for moment in later if moment > self._looked_at]
        return wait_seconds(min(due) - time.monotonic()) if due else None

    def _look_again(self) -> None:
        """End all pauses: workers may have become ready or awake."""
        for replica in self._replicas:
            replica.look_again()

    def _expire(self) -> None:
        for live in self._time_limits.take_due(time.monotonic(), self._requests.by_id):
            self._end_early(live.handle.request_id, "timeout")

    def _dispatch(self) -> None:
        if self._closed:
            return
        try:
            fault, asleep = self.executor.fault(), self.sleeping.level > 0
        except OmniError as error:
            self._contract_broken(error)
            return
        if fault is not None:
            self._fail_waiting(fault)
        broken: list[OmniError] = []
        self._looked_at = time.monotonic()
        for index, replica in enumerate(self._replicas):
            if replica.step is not None:
                continue
            try:
                is_ready = self.executor.is_ready(index)
            except OmniError as error:
                broken.append(error)
                self._steps.replica_failed(index, error)
                continue
            self._estimates.note_ready(index, is_ready=is_ready)
            if is_ready:
                self._begin_step(index, asleep=asleep)
        if len(broken) == len(self._replicas):
            self._fail_waiting(broken[0])

    def _contract_broken(self, error: OmniError) -> None:
        """Fail all waiting requests because a call of the executor failed. Running steps may still end."""
        self._fail_waiting(error)
        for index, replica in enumerate(self._replicas):
            if replica.step is None:
                self._steps.replica_failed(index, error)

    def _begin_step(self, index: int, *, asleep: bool) -> None:
        replica = self._replicas[index]
        asleep = asleep or not replica.end_pause(self._looked_at)
        scheduler_output = replica.give_up_strays() or self._scheduler.schedule(
            index, self._looked_at, asleep=asleep, most_waves=_MOST_WAVES if self._can_interrupt else 1
        )
        if scheduler_output is None:
            return
        found = [self._requests.get(request.request_id) for request in scheduler_output.new_requests]
        replica.begin(scheduler_output, [live for live in found if live is not None])
        self._estimates.step_begins(index, scheduler_output.new_requests, replica.begun_at)
        try:
            report = functools.partial(self._report_step, index)
            replica.step = self.executor.execute_step(index, scheduler_output, report)
        except BaseException as error:
            failed: Future[StepOutput] = Future()
            replica.step = failed
            failed.set_exception(error)
            self._report_step(index, failed)

    def _report_step(self, replica: int, future: Future[StepOutput]) -> None:
        """Pass the end of a step to the engine's thread. From any thread."""
        self._messages.put(functools.partial(self._steps.done, replica, future))

    def _accept(self, accepted: list[Live]) -> None:
        # A fault of the engine may have ended some of them meanwhile.
        accepted = [live for live in accepted if self._requests.has(live)]
        for live in accepted:
            request = live.request
            if request.timeout_s is not None:
                self._time_limits.add(live, live.submitted_at + request.timeout_s)
            self._scheduler.add_request(request, time.monotonic())
        self._publish()  # before observers are notified: they must find the request counted
        for live in accepted:
            try:
                self.executor.request_queued(live.request)
            except OmniError as error:
                self._scheduler.end_request(live.handle.request_id, "aborted")
                self._requests.end([(live, OmniRequestOutput.failed(live.request, error))])
            else:
                self._notices.queued(live)
        self._interrupt_steps()

    def _end_early(self, request_id: str, reason: EndReason) -> None:
        live = self._requests.get(request_id)
        if live is None or self._requests.end_made(live, reason):
            return
        was_waiting = self._scheduler.end_request(request_id, reason)
        if not was_waiting:
            self._interrupt_steps()
        # An executor of whole requests cannot stop a request: the caller is notified now, and the output is dropped.
        if was_waiting or self.executor.runs_whole_requests:
            self._requests.finish([(live, OmniRequestOutput.ended(live.request, reason))])

    def _interrupt_steps(self) -> None:
        """Interrupt the running steps: there is news for them."""
        if not self._can_interrupt:
            return
        for index, replica in enumerate(self._replicas):
            if replica.step is None:
                continue
            replica.interrupted()
            try:
                self.executor.interrupt(index)
            except OmniError:
                self._can_interrupt = False
                log.exception("steps cannot be interrupted, and have one wave each from now on")
                return

    def _fail_waiting(self, error: OmniError) -> None:
        waiting = [(one, self._requests.get(one.request_id)) for one in self._scheduler.take_waiting()]
        self._requests.end([(live, OmniRequestOutput.failed(one, error)) for one, live in waiting])

    def _report_made(self, live: Live, output: OmniRequestOutput) -> None:
        """Take the output that the output hooks returned. From any thread."""
        self._messages.put(lambda: self._requests.end([(live, output)]))

    def _note_counted(self) -> None:
        if self.is_current:
            self._publish()

    def _publish(self) -> None:
        """Publish the numbers of requests for other threads. Only the engine's thread reads the scheduler."""
        scheduler = self._scheduler
        parked = scheduler.num_parked
        self._numbers = Numbers(
            scheduler.num_waiting,
            scheduler.num_running - parked + self._requests.num_made,
            parked,
            self._requests.ended,
        )
