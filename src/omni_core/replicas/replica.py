"""A replica: the ranks of one copy of the model, which start, fail and restart together."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

from omni_core.calls import call_name
from omni_core.config import OmniDiffusionConfig
from omni_core.errors import ExecutorError, OmniError, RPCError, StartupError, WorkerDiedError
from omni_core.hookspecs import Hooks
from omni_core.log import get_logger
from omni_core.outputs import SchedulerOutput, StepOutput
from omni_core.replicas.loop import Loop
from omni_core.replicas.options import ReplicaOptions
from omni_core.replicas.raised_ranks import RaisedRanks
from omni_core.replicas.start_clock import StartClock
from omni_core.replicas.watchdog import Watchdog
from omni_core.replicas.worker import Worker, WorkerEvents

log = get_logger(__name__)

State = Literal["starting", "ready", "restarting", "failed", "closed"]

# The first restart of a replica is immediate. Seconds before the second one; doubled for each further one.
_FIRST_BACKOFF_S = 0.25


@dataclass(frozen=True, slots=True)
class ReplicaEvents:
    """Callbacks of a replica to its executor, in the loop's thread.

    Attributes:
        on_change: Called when `is_ready` or `error` has changed.
        on_heard: Called when a worker has replied to a ping.
        sleep_level: Returns at which level workers must sleep; 0 is awake.
    """

    on_change: Callable[[], None]
    on_heard: Callable[[], None]
    sleep_level: Callable[[], int]


class Replica(ABC):
    """Keeps the workers of one replica running. A subclass starts them.

    All methods but `call`, `execute_step`, `interrupt` and the properties belong to the loop's thread.

    Args:
        loop: The loop in whose thread the workers are watched.
        config: The configuration for the workers.
        options: The options of the executor.
        events: The callbacks to the executor.
        index: Index of the replica.
        hooks: Plugins to notify of deaths and restarts.
    """

    def __init__(
        self,
        loop: Loop,
        config: OmniDiffusionConfig,
        options: ReplicaOptions,
        events: ReplicaEvents,
        *,
        index: int,
        hooks: Hooks | None,
    ) -> None:
        self._state: State = "starting"
        self.index = index
        self.world_size = config.ranks_per_replica
        self.workers: list[Worker] = []
        self.num_restarts = 0
        self.error: OmniError | None = None
        self.first_start: Future[None] = Future()
        self._loop = loop
        self._config = config
        self._options = options
        self._hooks = hooks
        self._events = events
        self._raised = RaisedRanks(loop, index, events.on_change, options.collective_grace_s, lambda: self.workers)
        # Failed starts and deaths while idle, since the last step that was done.
        self._failures = 0
        # Whether a step was running when the workers were lost: then a request may be the cause.
        self._was_at_work = False
        # The death of the workers since the last step, if no step has failed with it.
        self._lost_between: WorkerDiedError | None = None
        self.start_clock = StartClock(loop, config.startup_timeout_s, self._start_took_too_long)
        # Workers that were killed and whose exit was not seen yet.
        self._leaving: list[Worker] = []
        self._watchdog = Watchdog(loop, lambda: self.workers, config.step_timeout_s, options.heartbeat_timeout_s)

    @abstractmethod
    def start_workers(self) -> None:
        """Start a worker for each rank, and add each to `workers`, now or when it has connected.

        Their callbacks are `worker_events`. The workers of the previous start have ended or are ending.
        """

    def clean_up(self) -> None:  # noqa: B027  # to be overridden where there is something
        """Release what the workers of the last start shared."""

    @property
    def worker_events(self) -> WorkerEvents:
        """The callbacks for the workers of this replica."""
        return WorkerEvents(self._rank_ready, self._rank_dead, self._events.on_heard)

    @property
    def state(self) -> State:
        """The state of the replica."""
        return self._state

    def _set_state(self, state: State, reason: str = "") -> None:
        """Set the state, and notify observers."""
        self._state = state
        self._notify("omni_replica_state", replica=self.index, state=state, reason=reason)

    @property
    def is_ready(self) -> bool:
        """Whether the workers take calls."""
        # Callers are notified of a death before the state changes. Their next calls must not go to a dead worker.
        return (
            self.state == "ready" and not self._raised.is_condemned and all(worker.is_alive for worker in self.workers)
        )

    @property
    def all_workers(self) -> list[Worker]:
        """The workers, and those that are ending."""
        return [*self.workers, *self._leaving]

    def start(self) -> None:
        """Start a worker for each rank."""
        if self.state == "closed":
            return
        # `state` does not change: a replica that has failed remains so until it is ready.
        self._notify("omni_replica_state", replica=self.index, state="starting", reason="")
        self.start_clock.start()
        try:
            self.start_workers()
        except (
            OSError,
            StartupError,
        ) as error:  # no file descriptors or no temporary folder: report it now, and try again later
            what = error.message if isinstance(error, StartupError) else f"{type(error).__name__}: {error}"
            self.start_failed(f"could not be started: {what.rstrip('.')}")

    def call(
        self,
        method: str | Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Future[Any]]:
        """Send a call to all ranks. From any thread.

        Args:
            method: Name of a method of the worker, or a callable that gets the worker as its first argument.
            args: Further positional arguments.
            kwargs: Keyword arguments.

        Returns:
            A future for each rank. If a rank fails and others do not reply, because they wait for it in a collective,
            the replica is replaced.

        Raises:
            RPCError: An argument cannot be pickled.
            WorkerDiedError: The replica is being replaced.
        """
        # Read once: the loop's thread may replace the list at any moment.
        workers = self.workers
        if not workers or not self.is_ready:
            raise self.unavailable()
        packed = workers[0].pack(method, args, kwargs)
        sent: list[list[int]] = [[] for _ in workers]
        try:
            futures = [
                worker.post(packed, call_name(method), parts) for worker, parts in zip(workers, sent, strict=True)
            ]
        except BaseException:  # of a signal handler
            if any(sent) and not all(sent):
                self._loop.call_soon(
                    lambda: workers[0].declare_dead("was made a call that an interrupt has kept from other ranks")
                )
            raise
        if len(futures) > 1:
            for future in futures:
                future.add_done_callback(lambda done: self._raised.release_others(done, workers, futures))
        self._watchdog.look_after()
        return futures

    def execute_step(self, scheduler_output: SchedulerOutput) -> Future[StepOutput]:
        """Run a step on all ranks. From any thread, one step at a time.

        Returns:
            A future of rank 0's output, done when all ranks are done. It fails with `WorkerDiedError` if a rank ended,
            hung or raised; then the replica is replaced.

        Raises:
            RPCError: A request cannot be pickled; nothing was sent.
        """
        outcome: Future[StepOutput] = Future()
        lost, self._lost_between = self._lost_between, None
        if lost is not None and _goes_on(scheduler_output):
            outcome.set_exception(lost)  # the new workers do not have these requests
            return outcome
        self._was_at_work = False
        for worker in self.workers[:1]:
            worker.begin_step()
        self._watchdog.step_since = self._loop.time()
        try:
            futures = self.call("execute_step", (scheduler_output,))
        except RPCError:
            self._watchdog.step_since = None
            raise
        except WorkerDiedError as error:
            self._watchdog.step_since = None
            outcome.set_exception(error)
            return outcome
        open_futures = set(range(len(futures)))

        lock = threading.Lock()

        def note(index: int, future: Future[Any]) -> None:
            error = future.exception()
            with lock:
                # True once: when a rank fails, or when the last rank is done.
                is_last = index in open_futures and (error is not None or len(open_futures) == 1)
                open_futures.discard(index)
                if error is not None:
                    open_futures.clear()
            if not is_last:
                return
            self._watchdog.step_since = None
            if error is not None:
                self._was_at_work = True
                self._raised.fail_step(outcome, futures, index, error)
                return
            self._failures = 0
            outcome.set_result(futures[0].result())

        for index, future in enumerate(futures):
            future.add_done_callback(lambda done, index=index: note(index, done))  # type: ignore[misc]
        return outcome

    def interrupt(self) -> None:
        """Let a long step return early. From any thread."""
        if self._watchdog.step_since is not None:
            for worker in self.workers[:1]:
                worker.interrupt()  # rank 0 passes it to the other ranks

    def unavailable(self) -> WorkerDiedError:
        """Return the error of calls while the replica is not ready."""
        if self.error is not None:
            return WorkerDiedError(str(self.error), replica=self.index)
        return WorkerDiedError(f"Replica {self.index} is {self.state}; it takes no calls.", replica=self.index)

    def drop_closed(self) -> None:
        """Forget the workers that have ended and were released."""
        self._leaving = [worker for worker in self._leaving if not worker.is_closed]

    def close(self) -> None:
        """Stop restarts, and ask the workers to end after the running step."""
        self._set_state("closed")
        self.start_clock.stop()
        for worker in self.workers:
            worker.interrupt()
            worker.finish()

    def forget(self) -> None:
        """Release everything. All processes were killed."""
        self._raised.settle_all()
        for worker in self.all_workers:
            worker.abandon("the executor was shut down")
        self.workers, self._leaving = [], []
        self.clean_up()

    def _rank_ready(self) -> None:
        is_complete = len(self.workers) == self.world_size and all(
            worker.ready_at is not None for worker in self.workers
        )
        if self.state == "closed" or not is_complete:
            return
        self.start_clock.stop()
        level = self._events.sleep_level()
        if level:
            for worker in self.workers:
                worker.call("sleep", kwargs={"level": level})
        was_lost = self.first_start.done()
        self.error = None
        self._set_state("ready")
        for worker in self.workers:
            self._notify("omni_worker_started", replica=self.index, rank=worker.rank, pid=worker.pid)
        if was_lost:
            self.num_restarts += 1
            for worker in self.workers:
                self._notify("omni_worker_restarted", replica=self.index, rank=worker.rank)
        else:
            self.first_start.set_result(None)
        self._events.on_change()

    def start_failed(self, what: str, said: str = "") -> None:
        """Give up the start that is under way, of which no worker can tell what went wrong.

        Args:
            what: What happened, to be read after "Replica 0".
            said: What was written meanwhile.
        """
        if self.state != "closed":
            error = StartupError(f"Replica {self.index} {what}.", worker_traceback=said or None)
            self._lose_workers(f"was ended with its replica, which {what}")
            self._lost(error)

    def _rank_dead(self, dead: Worker, what: str, load_error: OmniError | None) -> None:
        if self.state == "closed" or dead not in self.workers:
            return
        error: OmniError = load_error or dead.death()
        if dead.ready_at is not None and not self._was_at_work:
            self._lost_between = dead.death()
        self._lose_workers(f"was ended with its replica, whose rank {dead.rank} {what}", dead)
        if dead.ready_at is not None and self.first_start.done():
            self._notify("omni_worker_died", replica=self.index, rank=dead.rank, reason=f"The {dead.name}, {what}.")
        elif load_error is None:
            said = dead.last_output() or None
            error = StartupError(f"The {dead.name}, {what} while it loaded the pipeline.", worker_traceback=said)
        self._lost(error)

    def _lose_workers(self, why: str, dead: Worker | None = None) -> None:
        self.start_clock.stop()
        self._state = "restarting"
        workers, self.workers = self.workers, []
        self._raised.is_condemned = False
        self._leaving.extend(worker for worker in workers if not worker.is_closed)
        for worker in workers:
            if worker is not dead:
                # The step must fail with the death that was the cause, not with that of a worker killed because of it.
                worker.declare_dead(why, None if dead is None else dead.death())
        self.clean_up()

    def _lost(self, error: OmniError) -> None:
        if self.first_start.done():
            self._restart(error)
        else:
            self.error = error
            self._set_state("failed", error.message)
            self.first_start.set_exception(error)

    def _restart(self, error: OmniError) -> None:
        # Deaths in a step are limited by `max_retries` of the requests, and must not mark the replica as failed.
        self._failures += not self._was_at_work
        self._was_at_work = False
        delay = 0.0
        if self._failures > 1:
            delay = min(self._options.max_backoff_s, _FIRST_BACKOFF_S * 2 ** min(self._failures - 2, 20))
        state: State = "failed" if self._failures > self._options.max_failures else "restarting"
        times = f"{self._failures} times in a row without doing a step" if self._failures else "in a step"
        self.error = ExecutorError(
            f"Replica {self.index} died {times}; the next try is in {delay:g} s. The last time: {error.message}",
            worker_traceback=error.worker_traceback,
        )
        self._set_state(state, error.message)
        if state == "failed":
            log.error("a replica keeps dying", replica=self.index, failures=self._failures, next_try_in_s=delay)
        self._loop.call_later(delay, self.start)
        self._events.on_change()

    def _start_took_too_long(self) -> None:
        what = f"did not come to an end within startup_timeout_s = {self._config.startup_timeout_s:g} s and was killed"
        for worker in list(self.workers):
            if worker.ready_at is None:
                worker.declare_dead(what)
                return
        self.start_failed(what)

    def _notify(self, hook: str, **arguments: Any) -> None:
        if self._hooks is not None:
            self._hooks.notify(hook, **arguments)


def _goes_on(scheduler_output: SchedulerOutput) -> bool:
    """Whether a step names requests that were started in an earlier step."""
    new = {request.request_id for request in scheduler_output.new_requests}
    named = {request_id for wave in scheduler_output.waves for request_id in wave}
    return not named | set(scheduler_output.ended_requests) <= new
