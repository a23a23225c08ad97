"""The base class of executors with replicas: calls, health checks and shutdown."""

from __future__ import annotations

import os
import signal
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from omni_core.calls import call_name
from omni_core.config import OmniDiffusionConfig
from omni_core.engine_place import refuse_worker_processes
from omni_core.errors import ExecutorError, OmniError, RPCError, RPCTimeoutError, StartupError, WorkerDiedError
from omni_core.executor import OPTIONS_TO_DECLARE, DiffusionExecutor
from omni_core.outputs import OmniRequestOutput, SchedulerOutput, StepOutput, WorkerStats
from omni_core.replicas.loop import Loop, run_in
from omni_core.replicas.replica import Replica, ReplicaEvents
from omni_core.replicas.replies import gather, wait_for_all, with_refused
from omni_core.replicas.worker import Worker
from omni_core.request import OmniDiffusionRequest, refuse_used_ids
from omni_core.timeouts import Deadline, is_done_within

LoopT = TypeVar("LoopT", bound=Loop)

# Seconds within which `check_health` returns, also while the workers are busy.
_HEALTH_S = 0.9
# Seconds that shutdown waits for the running steps, then after SIGTERM, then after SIGKILL.
_FINISH_S = 2.0
_TERMINATE_S = 1.0
_KILL_S = 5.0
# Seconds between two checks that the loop's thread is not blocked during a start.
_LOOK_S = 1.0


class ReplicaExecutor(DiffusionExecutor, Generic[LoopT]):
    """Runs `data_parallel_size` replicas of `ranks_per_replica` workers each, and replaces those that end.

    A worker that ends, hangs or raises in a step is replaced with its replica; the engine runs its requests again.
    A subclass makes the loop (`make_loop`) and the replicas (`make_replicas`), and releases what else it has
    (`release`).
    """

    supported_options: ClassVar[frozenset[str]] = OPTIONS_TO_DECLARE
    runs_diffusion_worker: ClassVar[bool] = True
    can_interrupt: ClassVar[bool] = True
    has_worker_processes: ClassVar[bool] = True
    # None before the start and after the end.
    _loop: LoopT | None = None

    @abstractmethod
    def make_loop(self) -> LoopT:
        """Return the running loop of this executor. `shutdown` stops it."""

    @abstractmethod
    def make_replicas(self, loop: LoopT, events: ReplicaEvents) -> Sequence[Replica]:
        """Return the replicas, not started yet. In the loop's thread.

        Args:
            loop: The loop that `make_loop` returned.
            events: The callbacks for the replicas.
        """

    def release(self) -> None:  # to be overridden where there is something
        """Release what else `make_replicas` created. All workers have ended. In the loop's thread."""

    def prepare_step(self, scheduler_output: SchedulerOutput) -> tuple[SchedulerOutput, list[OmniRequestOutput]]:
        """Return the step to send, and an output for each new request that cannot be sent."""
        return scheduler_output, []

    def _init_executor(self) -> None:
        self._replicas: list[Replica] = []
        refuse_worker_processes(self.name)
        self._num_workers = self.config.data_parallel_size * self.config.ranks_per_replica
        self._heard = threading.Condition()
        self._loop = self.make_loop()
        run_in(self._loop, self._start_all)
        for replica in self._replicas:
            self._wait_for_first_start(replica)

    def _wait_for_first_start(self, replica: Replica) -> None:
        """Wait until a replica is ready. The replica itself enforces `startup_timeout_s`."""
        assert self._loop is not None
        # Since when it was seen to be late: a program that stood still, which puts the loop's timers off, is not.
        late_since: float | None = None
        while not is_done_within(replica.first_start, _LOOK_S):
            due, now = replica.start_clock.due, self._loop.time()
            late_since = None if due is None or now < due else late_since or now
            if late_since is not None and now - late_since > _KILL_S:  # the loop's thread is blocked
                raise StartupError(f"Replica {replica.index} did not start in time.")
        replica.first_start.result()

    def _start_all(self) -> None:
        assert self._loop is not None
        events = ReplicaEvents(self._changed, self._note_heard, self.sleep_level)
        self._replicas += self.make_replicas(self._loop, events)
        for replica in self._replicas:
            replica.start()

    def execute_step(self, replica: int, scheduler_output: SchedulerOutput) -> Future[StepOutput]:
        """Advance the running requests of a replica, wave by wave, on all its ranks."""
        sent, refused = self.prepare_step(scheduler_output)
        future = self._replicas[replica].execute_step(sent)
        return with_refused(future, refused) if refused else future

    def interrupt(self, replica: int) -> None:
        """Let the running `execute_step` return after the wave that is running."""
        self._replicas[replica].interrupt()

    def is_ready(self, replica: int) -> bool:
        """Whether the replica takes steps."""
        return self._replicas[replica].is_ready

    @property
    def fault(self) -> OmniError | None:
        """Why no replica takes steps: the error of the last one, if all have failed."""
        if self._replicas and all(replica.state == "failed" for replica in self._replicas):
            return self._replicas[-1].error
        return None

    def execute_model(self, requests: list[OmniDiffusionRequest]) -> list[OmniRequestOutput]:
        """Run whole requests, spread over the replicas. The engine's own requests wait until they have ended."""
        refuse_used_ids(requests)
        self._refuse_to_wait_here("execute_model")
        ready = [replica for replica in self._replicas if replica.is_ready]
        if not ready:
            raise self.fault or self._replicas[0].unavailable()
        parts: dict[int, list[OmniDiffusionRequest]] = {}
        for number, request in enumerate(requests):
            parts.setdefault(number % len(ready), []).append(request)
        futures = [ready[number].call("execute_model", (part,))[0] for number, part in parts.items()]
        outputs = {output.request_id: output for future in futures for output in future.result()}
        return [outputs[request.request_id] for request in requests]

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        unique_reply_rank: int | None = None,
    ) -> Any:
        """Call a method on every worker, between two steps.

        A worker that is replaced later does not make the call again.

        Args:
            method: Name of a method of the worker, or a callable that gets the worker as its first argument.
            timeout: Seconds to wait for the replies; None waits until they come. Later replies are dropped.
            args: Further positional arguments.
            kwargs: Keyword arguments.
            unique_reply_rank: Number of the worker whose reply is returned, counted over all replicas.

        Returns:
            A list with one result per rank of every replica, or one result if `unique_reply_rank` is given.

        Raises:
            RPCError: The call raised in a worker, the worker has no such method, or an argument cannot be pickled.
            RPCTimeoutError: A reply did not come in time.
            WorkerDiedError: A worker ended before it replied, or is being replaced.
        """
        self._refuse_unknown_rank(unique_reply_rank)
        deadline = Deadline(timeout)
        self._refuse_to_wait_here(call_name(method))
        self._wait_until_ready(deadline)
        results, late = wait_for_all(self._call_all(method, args, kwargs), deadline)
        if late:
            names = ", ".join(map(str, late))
            raise RPCTimeoutError(
                f"The call {call_name(method)!r} did not return within {deadline.seconds:g} s: no reply from worker "
                f"{names}. It runs on there, and its result is dropped."
            )
        return results if unique_reply_rank is None else results[unique_reply_rank]

    def begin_rpc(
        self,
        method: str | Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        unique_reply_rank: int | None = None,
    ) -> Future[Any]:
        """Begin a call of a method on every worker, and return at once.

        Returns:
            A future of what `collective_rpc` returns.
        """
        self._refuse_unknown_rank(unique_reply_rank)
        if not all(replica.is_ready for replica in self._replicas):
            return super().begin_rpc(method, args, kwargs, unique_reply_rank)
        try:
            return gather(self._call_all(method, args, kwargs), unique_reply_rank)
        except WorkerDiedError as error:  # just now
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed

    def _refuse_unknown_rank(self, rank: int | None) -> None:
        number = self._num_workers
        if rank is not None and rank not in range(number):
            raise RPCError(f"There is no rank {rank}: there are {number} workers, 0 to {number - 1}.")

    def _call_all(
        self, method: str | Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None
    ) -> list[Future[Any]]:
        futures: list[Future[Any]] = []
        for replica in self._replicas:
            futures += replica.call(method, args, kwargs)
            replica.interrupt()
        return futures

    def check_health(self) -> None:
        """Return if a replica can serve: its processes reply to a ping, also while they are busy."""
        if self._loop is None:
            raise ExecutorError("The executor was shut down.")
        ready = [replica for replica in self._replicas if replica.is_ready]
        if not ready:
            reasons = "; ".join(str(replica.error or replica.state) for replica in self._replicas)
            raise ExecutorError(f"No replica can serve: {reasons}")
        workers = [worker for replica in ready for worker in replica.workers]
        asked_at = self._loop.time()
        for worker in workers:
            worker.ping(again=True)
        # A worker that has died since is being replaced and will not reply.
        with self._heard:
            self._heard.wait_for(
                lambda: all(_answered(worker, asked_at) or not worker.is_alive for worker in workers), _HEALTH_S
            )
        silent = [worker.name for worker in workers if worker.is_alive and not _answered(worker, asked_at)]
        if not any(worker.is_alive for worker in workers):
            raise ExecutorError(f"No replica can serve: the {workers[0].name} and all others have just died.")
        if silent:
            raise ExecutorError(f"No answer within {_HEALTH_S:g} s from: {', '.join(silent)}.")

    def worker_stats(self) -> list[WorkerStats]:
        """Return what is known about each worker, without a call."""
        now = time.monotonic() if self._loop is None else self._loop.time()
        stats = []
        for replica in self._replicas:
            workers = {worker.rank: worker for worker in list(replica.workers)}
            for rank in range(self.config.ranks_per_replica):
                stats.append(_stats(replica, workers.get(rank), rank, now))
        return stats

    def shutdown(self) -> None:
        """End all workers: after the running step, or by a signal."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        try:
            for then, seconds in (
                (self._finish_all, _FINISH_S),
                (partial(self._signal, signal.SIGTERM), _TERMINATE_S),
                (partial(self._signal, signal.SIGKILL), _KILL_S),
            ):
                run_in(loop, then)
                if self._wait_until_gone(seconds):
                    break
        except BaseException:  # Ctrl-C: do not wait for the workers
            run_in(loop, partial(self._signal, signal.SIGKILL))
            self._wait_until_gone(_KILL_S)
            raise
        finally:
            try:
                run_in(loop, self._forget_all)
            finally:
                loop.stop()

    def _refuse_to_wait_here(self, what: str) -> None:
        if self._loop is None:
            raise ExecutorError("The executor was shut down.")
        if self._loop.is_current:
            raise ExecutorError(
                f"The call {what!r} was made in the thread that watches the workers, as in a hook that tells of their "
                "death: it cannot wait here. Make it in a thread of your own, or by begin_rpc."
            )

    def _wait_until_ready(self, deadline: Deadline) -> None:
        """Wait for replicas that are being replaced."""

        def is_settled() -> bool:
            return all(replica.is_ready or replica.state in ("failed", "closed") for replica in self._replicas)

        with self._heard:
            self._heard.wait_for(is_settled, deadline.left())
        for replica in self._replicas:
            if not replica.is_ready:
                raise replica.unavailable()

    def _finish_all(self) -> None:
        for replica in self._replicas:
            replica.close()
        self._note_heard()  # wakes callers that wait for a replica to be replaced

    def _signal(self, which: signal.Signals) -> None:
        for replica in self._replicas:
            for worker in replica.all_workers:
                worker.kill(which)

    def _wait_until_gone(self, seconds: float) -> bool:
        with self._heard:
            return self._heard.wait_for(self._are_gone, seconds)

    def _are_gone(self) -> bool:
        return all(worker.has_exited for replica in self._replicas for worker in replica.all_workers)

    def _forget_all(self) -> None:
        for replica in self._replicas:
            replica.forget()
        self.release()

    def _changed(self) -> None:
        self._note_heard()
        self.notify_change()

    def _note_heard(self) -> None:
        with self._heard:
            self._heard.notify_all()


def worker_config(config: OmniDiffusionConfig, executor: str) -> OmniDiffusionConfig:
    """Return the configuration for workers.

    It has neither the class nor the options of the executor, which may exist in the driver only.

    Args:
        config: The configuration of the engine.
        executor: Name of the executor.
    """
    return config.replace(executor_class=executor, executor_options={})


def _answered(worker: Worker, asked_at: float) -> bool:
    return worker.heard_at is not None and worker.heard_at >= asked_at


def _stats(replica: Replica, worker: Worker | None, rank: int, now: float) -> WorkerStats:
    state: Any = {"ready": "idle", "closed": "failed"}.get(replica.state, replica.state)
    if worker is None or worker.pid is None:
        return WorkerStats(replica.index, rank, None, state, restarts=replica.num_restarts)
    if state == "idle" and worker.num_pending:
        state = "busy"
    return WorkerStats(
        replica.index,
        rank,
        worker.pid,
        state,
        uptime_s=0.0 if worker.ready_at is None else now - worker.ready_at,
        restarts=replica.num_restarts,
        memory_bytes=_resident_bytes(worker.pid),
        last_heartbeat_s=None if worker.heard_at is None else now - worker.heard_at,
    )


def _resident_bytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
