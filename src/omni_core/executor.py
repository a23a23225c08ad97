"""The executor contract: how work reaches the model. See docs/PLUGIN_AUTHORS.md.

The engine decides *what* runs next; an executor decides *where*, and owns the workers, their health and their end.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from omni_core.config import OmniDiffusionConfig
from omni_core.errors import (
    ConfigError,
    ContractError,
    ExecutorError,
    OmniError,
    RPCError,
    RPCTimeoutError,
    StartupError,
    ValidationError,
    WorkerDiedError,
)
from omni_core.hookspecs import Hooks
from omni_core.log import get_logger
from omni_core.outputs import OmniRequestOutput, SchedulerOutput, StepOutput, WorkerStats
from omni_core.pipeline_info import PipelineInfo
from omni_core.request import OmniDiffusionRequest
from omni_core.serial_thread import SerialThread
from omni_core.sleep_state import SleepState
from omni_core.timeouts import Deadline
from omni_core.validation import described

log = get_logger(__name__)

# Options that change how the work is executed: an executor honours one only if it says so.
PARALLEL_OPTIONS = frozenset(
    {"data_parallel_size", "cfg_parallel_size", "ulysses_degree", "ring_degree", "tensor_parallel_size"}
)
# Options that our DiffusionWorker honours wherever it runs.
WORKER_OPTIONS = frozenset(
    {"compile", "cache", "stacking", "offload", "attention_backend", "worker_extension_cls", "num_threads"}
)
OPTIONS_TO_DECLARE = PARALLEL_OPTIONS | WORKER_OPTIONS | {"step_timeout_s"}
# Methods of the worker that are not for `collective_rpc`, since the engine must know what its workers do, and what to
# write instead.
OWN_CALLS = MappingProxyType(
    {
        "call": "Write collective_rpc with the name of the method itself.",
        "close": "Write engine.close(), which ends the workers too.",
        "execute_step": "Write engine.submit(request): the engine decides what its workers advance.",
        "sleep": "Write engine.sleep(level=…) or executor.sleep(level=…), so that requests wait meanwhile.",
        "wake_up": "Write engine.wake_up() or executor.wake_up(), so that requests that waited are served.",
    }
)
# Seconds that workers which fell asleep have to wake again if another could not fall asleep.
_WAKE_AGAIN_S = 60.0


@dataclass(frozen=True, slots=True)
class ExecutorContext:
    """What the engine hands to an executor besides the configuration.

    Attributes:
        options: `executor_options`, validated: an instance of the executor's own options model, or None.
        plugins: The plugins of this engine.
        pipeline: The pipeline object given to the engine, if one was.
    """

    options: Any = None
    plugins: Hooks | None = None
    pipeline: Any = None


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
        config: The configuration of the engine.
        options: `executor_options` as an instance of the options model of the executor's `ExecutorSpec`.
        plugins: The plugins of the engine.

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

    def __init__(self, config: OmniDiffusionConfig, context: ExecutorContext | None = None) -> None:
        context = context or ExecutorContext()
        self.config = config
        self.options = context.options
        self.plugins = context.plugins
        self._pipeline = context.pipeline
        self._sleep_state = SleepState()
        self._change_listeners: list[Callable[[], None]] = []
        self._close_lock = threading.RLock()  # a signal handler may close in the middle of this
        self._closed = False
        # Guarded by `_close_lock`: none is made once it is closed.
        self._step_threads: dict[int, SerialThread] = {}
        self.refuse_unsupported_options(config)
        self._refuse_pipeline()
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
        return type(self).__name__

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
            return self._step_threads[replica].submit(self._execute_whole_requests, scheduler_output.new_requests)

    def interrupt(self, replica: int) -> None:  # noqa: B027  # to be overridden where it means something
        """Let a running `execute_step` of several waves return after the one that is running. Returns at once.

        An executor that cannot do this gets one wave at a time: see `can_interrupt`.

        Args:
            replica: Index of the replica.
        """

    def _execute_whole_requests(self, requests: list[OmniDiffusionRequest]) -> StepOutput:
        outputs: Any = self.execute_model(list(requests))
        wanted = [request.request_id for request in requests]
        if not isinstance(outputs, (list, tuple)):
            raise ContractError(
                f"{self.name}.execute_model returned {described(outputs)}: it must return a list with one "
                f"OmniRequestOutput per request, in order."
            )
        # One that is no output at all fails alone, since its place says whose it is.
        got = [output.request_id if isinstance(output, OmniRequestOutput) else None for output in outputs]
        if len(got) != len(wanted) or any(one not in (None, asked) for one, asked in zip(got, wanted, strict=True)):
            raise ContractError(
                f"{self.name}.execute_model broke its contract: it must return one output per request, in order. "
                f"Asked for {wanted}, got {got}."
            )
        finished = [
            output if isinstance(output, OmniRequestOutput) else self._no_output(request, output)
            for request, output in zip(requests, outputs, strict=True)
        ]
        return StepOutput(started=wanted, finished=finished)

    def _no_output(self, request: OmniDiffusionRequest, returned: Any) -> OmniRequestOutput:
        error = ContractError(
            f"{self.name}.execute_model returned {described(returned)} for request {request.request_id!r}: it must "
            "return an OmniRequestOutput for each."
        )
        return OmniRequestOutput.failed(request, error)

    def describe_pipeline(self) -> PipelineInfo | None:
        """Return what the pipeline takes, so that a bad request is refused before it is sent; None if not known."""
        if not self.runs_diffusion_worker:
            return None
        info: PipelineInfo = self.collective_rpc("describe_pipeline", unique_reply_rank=0)
        return info

    @property
    def is_sleeping(self) -> bool:
        """Whether the workers are asleep: requests then wait."""
        return self._sleep_state.level > 0

    @property
    def sleep_level(self) -> int:
        """At which level the workers sleep; 0 is awake. One that replaces another is put to sleep at it."""
        return self._sleep_state.level

    def sleep(self, level: int = 1, timeout: float | None = None) -> None:
        """Free accelerator memory until `wake_up`. Requests that arrive meanwhile wait.

        Args:
            level: 1 moves the weights to host memory, 2 drops them.
            timeout: Seconds to wait for the workers; None waits until they sleep.

        Raises:
            ValidationError: There is no such level.
            RPCTimeoutError: A worker did not fall asleep in time. It may do so later: `wake_up` wakes all.
        """
        if isinstance(level, bool) or level not in (1, 2):
            raise ValidationError(f"sleep level {level!r} does not exist: 1 moves weights to host memory, 2 drops them")
        deadline = Deadline(timeout)
        with self._sleep_state.turn("sleep", deadline):
            if self._sleep_state.level >= level:
                return
            before, self._sleep_state.level = self._sleep_state.level, level
            try:
                self.collective_rpc("sleep", timeout=deadline.left(), kwargs={"level": level})
            except RPCTimeoutError:
                raise
            except BaseException:
                self._sleep_state.level = before
                if before == 0:
                    self._wake_those_asleep()
                self.notify_change()
                raise

    def wake_up(self, timeout: float | None = None) -> None:
        """Bring the weights back and serve the requests that waited. Does nothing if awake.

        Args:
            timeout: Seconds to wait for the workers; None waits until they are awake.

        Raises:
            RPCTimeoutError: A worker was not awake in time; requests wait on, and this can be called again.
        """
        deadline = Deadline(timeout)
        with self._sleep_state.turn("wake_up", deadline):
            if self._sleep_state.level == 0:
                return
            self.collective_rpc("wake_up", timeout=deadline.left())
            self._sleep_state.level = 0
        self.notify_change()

    def refuse_own_call(self, method: str | Callable[..., Any]) -> None:
        """Refuse a call of `collective_rpc` by the name of a method that is not for it. To be called first there.

        Args:
            method: What `collective_rpc` was given.

        Raises:
            RPCError: It is one of `OWN_CALLS`; the message says what to write instead.
        """
        if isinstance(method, str) and method in OWN_CALLS and not self._sleep_state.is_caller:
            raise RPCError(f"The worker's {method!r} is not called by collective_rpc. {OWN_CALLS[method]}")

    def _wake_those_asleep(self) -> None:
        """Wake the workers that did fall asleep, after another could not: else requests would wait for them forever."""
        try:
            self.collective_rpc("wake_up", timeout=_WAKE_AGAIN_S)
        except WorkerDiedError:
            pass  # one that takes its place is awake
        except Exception:
            log.warning("a worker may be asleep, since it could not be woken", executor=self.name, exc_info=True)

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

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener()` when requests that waited may be taken up: workers woke up, or a replica became ready."""
        self._change_listeners.append(listener)

    def notify_change(self) -> None:
        """Tell the engine that `is_ready`, `is_sleeping` or `fault` may have changed. Any thread may call this."""
        for listener in list(self._change_listeners):
            listener()

    def close(self) -> None:
        """Call `shutdown` once, whoever asks and however often, and end the threads of `execute_step`."""
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
            threads = list(self._step_threads.values())
        self._sleep_state.close()
        try:
            self.shutdown()
        finally:
            for thread in threads:
                thread.close(timeout=5.0)

    @classmethod
    def unsupported_options(cls, config: OmniDiffusionConfig) -> list[str]:
        """Return the names of the options that a configuration sets and that this executor does not honour."""
        fields = type(config).model_fields
        return [
            name
            for name in sorted(OPTIONS_TO_DECLARE - cls.supported_options)
            if getattr(config, name) != fields[name].get_default()
        ]

    @classmethod
    def refuse_unsupported_options(cls, config: OmniDiffusionConfig) -> None:
        """Refuse what a configuration sets and this executor does not honour. Nothing is started.

        Args:
            config: The configuration of the engine.

        Raises:
            ConfigError: It sets such an option; the message says where.
        """
        unsupported = cls.unsupported_options(config)
        if unsupported:
            name = unsupported[0]
            raise ConfigError(
                f"The executor {cls.__name__} does not support {name} = {getattr(config, name)!r} "
                f"(set by {config.sources().get(name, 'argument')}). "
                f"Remove it, or choose another executor_class."
            )

    def refuse_hooks_given_in_code(self) -> None:
        """Refuse plugins that change the pipeline and are not installed; for executors whose workers are processes.

        Those find installed plugins alone.

        Raises:
            ConfigError: There is one.
        """
        names = self.plugins.given_in_code("omni_pipeline_loaded") if self.plugins is not None else ()
        if names:
            raise ConfigError(
                f"The plugin {', '.join(names)} was given in code and changes the pipeline that is loaded, but the "
                f"workers of {self.name} are other processes, which find installed plugins alone: pictures would "
                "differ. Install it (`omni plugins new NAME --kind pipeline-hook` writes such a distribution), or use "
                "executor_class='inline'."
            )

    def _refuse_pipeline(self) -> None:
        if self._pipeline is not None and not self.accepts_pipeline:
            raise ConfigError(
                f"The executor {self.name} cannot take a pipeline object: its workers load the pipeline themselves. "
                "Set model to a folder, a hub id or an import path pkg.mod:factory."
            )
