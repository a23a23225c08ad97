"""The executor contract: how work reaches the model. See docs/PLUGIN_AUTHORS.md.

The engine decides *what* runs next; an executor decides *where*, and owns the workers, their health and their end.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, ClassVar

from omni_core.config import FieldMark, OmniDiffusionConfig, marked_fields
from omni_core.errors import ExecutorError, OmniError, StartupError
from omni_core.hookspecs import Hooks
from omni_core.log import get_logger
from omni_core.outputs import OmniRequestOutput, SchedulerOutput, StepOutput, WorkerStats
from omni_core.pipeline_info import PipelineInfo
from omni_core.request import OmniDiffusionRequest
from omni_core.serial_thread import SerialThread
from omni_core.whole_requests import run_whole_requests

log = get_logger(__name__)

# Which field belongs to which of these sets is said once, at the field: see `FieldMark`.
# The sizes whose product is the number of ranks of a replica.
RANK_OPTIONS = frozenset(marked_fields(FieldMark.RANKS))
# The degrees of parallelism: those, and the number of replicas.
PARALLEL_OPTIONS = RANK_OPTIONS | frozenset(marked_fields(FieldMark.REPLICAS))
# Options that `DiffusionWorker` honours wherever it runs.
WORKER_OPTIONS = frozenset(marked_fields(FieldMark.WORKER))
# All options that an executor honours only if it declares so.
OPTIONS_TO_DECLARE = PARALLEL_OPTIONS | WORKER_OPTIONS | frozenset(marked_fields(FieldMark.EXECUTOR))


@dataclass(frozen=True, slots=True)
class ExecutorContext:
    """What the engine hands to an executor besides the configuration.

    Attributes:
        options: `executor_options`, validated: an instance of the executor's own options model, or None.
        plugins: The plugins of this engine.
        pipeline: The pipeline object given to the engine, if one was.
        sleep_level: Tells at which level workers are to sleep; 0 is awake. One that replaces another while this is not
            0 is put to sleep before it is ready. From any thread.
        name: What the user wrote in `executor_class`, if that is a registered name.
    """

    options: Any = None
    plugins: Hooks | None = None
    pipeline: Any = None
    sleep_level: Callable[[], int] = lambda: 0
    name: str = ""


class DiffusionExecutor(ABC):
    """Runs requests on one or more replicas of a model.

    A subclass writes five methods: `_init_executor`, `collective_rpc`, `execute_model`, `check_health` and
    `shutdown`. Everything else is derived from them::

        class WireExecutor(DiffusionExecutor):
            def _init_executor(self):
                self.client = connect(self.options.address)

            def execute_model(self, requests):
                return [self.client.run(request) for request in requests]

            def collective_rpc(self, method, timeout=None, args=(), kwargs=None, unique_reply_rank=None):
                replies = [self.client.call(method, args, kwargs or {}, timeout)]
                return replies if unique_reply_rank is None else replies[unique_reply_rank]

            def check_health(self):
                self.client.ping()

            def shutdown(self):
                self.client.close()

    An executor whose workers run omni's `DiffusionWorker` also overrides `execute_step` and sets
    `runs_diffusion_worker`; it then gets progress and abort at every denoising step.

    Attributes:
        supported_options: Names of the configuration fields in `OPTIONS_TO_DECLARE` that the executor honours.
            Another one that is set is refused at start-up.
        runs_diffusion_worker: Whether the workers are omni's own, so that their pipeline can be asked what it takes,
            and running requests can be aborted between two steps.
        can_interrupt: Whether `interrupt` has an effect, so that several waves can be asked for in one call.
        accepts_pipeline: Whether it takes a pipeline object (`DiffusionEngine(config, pipeline=…)`).
        has_worker_processes: Whether workers are other processes, which find installed plugins alone. Plugins that
            change what workers compute and were given in code are then refused.
        config: The configuration of the engine.
        options: `executor_options` as an instance of the options model of the executor's `ExecutorSpec`.
        sleep_level: Tells at which level workers are to sleep; see `ExecutorContext`.
        plugins: The plugins of the engine. Hooks that are called through it carry its `engine_id`.

    Args:
        config: The configuration of the engine.
        context: What the engine hands over besides.

    Raises:
        ConfigError: The configuration asks for what this executor cannot do.
        StartupError: It could not start; what it had started is shut down again.
    """

    supported_options: ClassVar[frozenset[str]] = frozenset()
    runs_diffusion_worker: ClassVar[bool] = False
    can_interrupt: ClassVar[bool] = False
    accepts_pipeline: ClassVar[bool] = False
    has_worker_processes: ClassVar[bool] = False

    def __init__(self, config: OmniDiffusionConfig, context: ExecutorContext | None = None) -> None:
        context = context or ExecutorContext()
        self.config = config
        self.options = context.options
        self.plugins = context.plugins
        self._pipeline = context.pipeline
        self.sleep_level = context.sleep_level
        self._name = context.name
        self._change_listeners: list[Callable[[], None]] = []
        self._close_lock = threading.RLock()  # a signal handler may close in the middle of this
        self._closed = False
        # Guarded by `_close_lock`: none is made once it is closed.
        self._step_threads: dict[int, SerialThread] = {}
        self._rpc_thread: SerialThread | None = None
        try:
            self._init_executor()
        except BaseException as error:
            try:
                self.close()
            except Exception:
                log.warning("clean-up after a failed start failed too", executor=self.name, exc_info=True)
            if isinstance(error, OmniError) or not isinstance(error, Exception):
                raise
            raise StartupError(f"The executor {self.name} could not start: {type(error).__name__}: {error}") from error

    # What a subclass writes.

    @abstractmethod
    def _init_executor(self) -> None:
        """Start the workers and load the model; return when requests can be served.

        `config`, `options` and `plugins` are set. If it raises, `shutdown` is called.
        """

    @abstractmethod
    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        unique_reply_rank: int | None = None,
    ) -> Any:
        """Call a method on every worker.

        Args:
            method: Name of a method of the worker, or a callable that gets the worker as its first argument.
            timeout: Seconds to wait for the replies; None waits until they come.
            args: Further positional arguments.
            kwargs: Keyword arguments.
            unique_reply_rank: Rank whose reply alone is wanted. The call runs on all ranks all the same.

        Returns:
            A list with one result per rank of every replica, or one result if `unique_reply_rank` is given.

        Raises:
            RPCError: The call raised in a worker, or the worker has no such method.
            RPCTimeoutError: A reply did not come in time.
        """

    @abstractmethod
    def execute_model(self, requests: list[OmniDiffusionRequest]) -> list[OmniRequestOutput]:
        """Run whole requests to their end.

        Returns:
            One output per request, in their order. A request that fails has `finish_reason="error"` and does not
            disturb the others.
        """

    @abstractmethod
    def check_health(self) -> None:
        """Return if requests can be served, within a second, even while all workers are busy.

        Raises:
            ExecutorError: They cannot; the message says why.
        """

    @abstractmethod
    def shutdown(self) -> None:
        """End every worker and release what the executor holds. Also called after a start that failed half-way."""

    # What is derived.

    @property
    def name(self) -> str:
        """Name of the executor in messages."""
        return self._name or type(self).__name__

    @property
    def num_replicas(self) -> int:
        """Number of replicas that `execute_step` can address."""
        return self.config.data_parallel_size

    def execute_step(self, replica: int, scheduler_output: SchedulerOutput) -> Future[StepOutput]:
        """Do what the scheduler asks of one replica.

        This version hands whole requests to `execute_model`, in a thread per replica, and reports when all of them
        have ended; a request that runs cannot be aborted. An executor that can advance requests step by step
        overrides it.

        Args:
            replica: Index of the replica, from 0 to `num_replicas - 1`.
            scheduler_output: What to take up, what to give up, and how far to go.

        Returns:
            A future of what was done. It fails only if the replica as a whole failed: with `WorkerDiedError` if a
            worker ended, and then the requests that it had are run again.
        """
        if not scheduler_output.new_requests:
            nothing_done: Future[StepOutput] = Future()
            nothing_done.set_result(StepOutput())
            return nothing_done
        with self._close_lock:
            if self._closed:
                raise ExecutorError(f"The executor {self.name} was shut down.")
            if replica not in self._step_threads:
                self._step_threads[replica] = SerialThread(f"omni-{self.name}-{replica}")
            return self._step_threads[replica].submit(
                run_whole_requests, self.execute_model, scheduler_output.new_requests, self.name
            )

    def interrupt(self, replica: int) -> None:  # noqa: B027  # to be overridden where it means something
        """Let a running `execute_step` of several waves return after the one that is running. Returns at once.

        An executor that cannot do this gets one wave at a time: see `can_interrupt`.

        Args:
            replica: Index of the replica.
        """

    def describe_pipeline(self) -> PipelineInfo | None:
        """Return what the pipeline takes, so that a bad request is refused before it is sent; None if not known."""
        if not self.runs_diffusion_worker:
            return None
        info: PipelineInfo = self.collective_rpc("describe_pipeline", unique_reply_rank=0)
        return info

    def begin_rpc(
        self,
        method: str | Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        unique_reply_rank: int | None = None,
    ) -> Future[Any]:
        """Begin a `collective_rpc` and return at once.

        Calls that are begun are made in their order. This version makes them one after the other in a thread for
        that; a call of `collective_rpc` meanwhile may go first. An executor that can wait for replies without a
        thread overrides it.

        Returns:
            A future of what `collective_rpc` returns, with the same errors.
        """
        with self._close_lock:
            if self._closed:
                raise ExecutorError(f"The executor {self.name} was shut down.")
            if self._rpc_thread is None:
                self._rpc_thread = SerialThread(f"omni-{self.name}-rpc")
            return self._rpc_thread.submit(self.collective_rpc, method, None, args, kwargs, unique_reply_rank)

    def request_queued(self, request: OmniDiffusionRequest) -> None:  # noqa: B027  # to be overridden where it is of use
        """Take note that the engine has accepted a request, which it may hand over later. In the engine's thread.

        Requests are told in the order in which they were submitted.
        """

    def request_ended(self, request_id: str, error: OmniError | None) -> None:  # noqa: B027
        """Take note that a request has ended, handed over or not. In the engine's thread, or in that which closes it.

        While an engine is closed it may come for requests that were never told of, and after `shutdown`.

        Args:
            request_id: Which.
            error: Why it has no output; None if it finished.
        """

    def is_ready(self, replica: int) -> bool:
        """Whether a replica takes steps. One whose workers are being replaced does not; its requests wait.

        An executor that replaces workers overrides this, and calls `notify_change` when the answer changes.

        Args:
            replica: Index of the replica.
        """
        return True

    @property
    def fault(self) -> OmniError | None:
        """Why no replica will take steps for now, as when workers keep dying: what waits then fails with it."""
        return None

    def worker_stats(self) -> list[WorkerStats]:
        """Return what is known about each worker, without asking it. Empty where there are no worker processes."""
        return []

    def worker_pids(self) -> list[list[int]]:
        """Return the process ids of each replica's workers that there are, by rank."""
        pids: list[list[int]] = [[] for _ in range(self.num_replicas)]
        for worker in self.worker_stats():
            if worker.pid is not None:
                pids[worker.replica].append(worker.pid)
        return pids

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener()` when the engine is to ask again for `is_ready` and `fault`."""
        self._change_listeners.append(listener)

    def notify_change(self) -> None:
        """Tell the engine that `is_ready` or `fault` may have changed. Any thread may call this."""
        for listener in list(self._change_listeners):
            listener()

    def close(self) -> None:
        """Call `shutdown` once, however often this is called, and end the threads of `execute_step`."""
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
            threads = [*self._step_threads.values(), *([] if self._rpc_thread is None else [self._rpc_thread])]
        try:
            self.shutdown()
        finally:
            for thread in threads:
                thread.close(timeout=5.0)
