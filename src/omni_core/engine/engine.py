"""`DiffusionEngine`: the synchronous API."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from omni_core.calls import WorkerCall
from omni_core.compat import vllm_omni
from omni_core.config import FieldMark, OmniDiffusionConfig, marked_fields
from omni_core.engine.checked_executor import CheckedExecutor
from omni_core.engine.core import EngineCore
from omni_core.engine.handle import RequestHandle, wait_all
from omni_core.engine.make_executor import close_quietly, make_executor
from omni_core.engine.sleeping import Sleeping
from omni_core.engine.worker_calls import ask_stacking, begin_call, make_call
from omni_core.engine_place import check_engine_place
from omni_core.errors import ConfigError, EngineClosedError, EngineOverloadedError, RequestError
from omni_core.executor import DiffusionExecutor, ExecutorContext
from omni_core.log import get_logger, set_level
from omni_core.outputs import EngineStats, OmniRequestOutput, RequestEstimate
from omni_core.own_threads import refuse_to_wait
from omni_core.pipeline_info import PipelineInfo
from omni_core.plugins import PluginRegistry, default_registry
from omni_core.plugins.engine_hooks import EngineHooks, new_engine_id
from omni_core.request import PASSED_BY_NAME, OmniDiffusionRequest
from omni_core.request_limits import check_size
from omni_core.timeouts import wait_seconds

log = get_logger(__name__)

# Seconds that `stats` waits for the numbers of the workers.
STATS_TIMEOUT_S = 5.0


class DiffusionEngine:
    """Runs requests on any diffusers pipeline, with the executor that the configuration names.

    All methods may be called from any thread::

        with DiffusionEngine(OmniDiffusionConfig()) as engine:
            [output] = engine.step([OmniDiffusionRequest(prompt="a red seven", seed=1)])
            output.images[0].save("seven.png")

    Args:
        config: The configuration; None takes it from the environment and `omni.toml`.
        pipeline: A pipeline object to use instead of loading `config.model` (inline executor only). The engine
            works on copies of it, so it can be used by itself when the engine is idle.
        plugins: The plugins to use; None takes those that are installed.

    Raises:
        ConfigError: The executor or the pipeline does not support the configuration.
        PluginError: The executor cannot be used.
        StartupError: The executor could not start.
        ModelLoadError: The pipeline could not be built.
        EngineError: It is created while a worker of another engine is loading, or while the module of its own factory
            is being imported.
    """

    def __init__(
        self,
        config: OmniDiffusionConfig | None = None,
        *,
        pipeline: Any = None,
        plugins: PluginRegistry | None = None,
    ) -> None:
        vllm_omni.refuse_former_ways_in(type(self), DiffusionEngine)
        self.config = config if config is not None else OmniDiffusionConfig()
        if not isinstance(self.config, OmniDiffusionConfig):
            raise ConfigError(f"DiffusionEngine takes an OmniDiffusionConfig, not a {type(config).__name__}.")
        check_engine_place({name: getattr(self.config, name) for name in marked_fields(FieldMark.IMPORT_PATH)})
        # First, since the search for plugins may write log lines.
        if self.config.sources()["log_level"] != "default":
            set_level(self.config.log_level)
        registry = plugins if plugins is not None else default_registry()
        self._hooks = EngineHooks(registry, new_engine_id())
        self._hooks.call_strict("omni_configure", config=self.config)
        sleeping = Sleeping(self._hooks)
        context = ExecutorContext(None, self._hooks, pipeline, lambda: sleeping.level_of_new)
        executor = make_executor(self.config, context, registry)
        try:
            checked_executor = CheckedExecutor(executor, self.config)
            self._pipeline_info = checked_executor.describe_pipeline()
            self._core = EngineCore(self.config, checked_executor, self._hooks, sleeping, self._pipeline_info)
        except BaseException:
            close_quietly(executor)
            raise
        self._pid = os.getpid()
        # Runs when the engine is closed, collected, or the interpreter exits, whichever comes first.
        self._finalizer = weakref.finalize(self, _close_core, self._core, self._pid)
        self._hooks.notify("omni_engine_started", config=self.config, executor=executor, engine=self)

    @classmethod
    def make_engine(
        cls,
        config: OmniDiffusionConfig | None = None,
        *,
        pipeline: Any = None,
        plugins: PluginRegistry | None = None,
    ) -> DiffusionEngine:
        """Make an engine; the same as calling the class."""
        return cls(config, pipeline=pipeline, plugins=plugins)

    @staticmethod
    def get_executor_class(
        config: OmniDiffusionConfig, plugins: PluginRegistry | None = None
    ) -> type[DiffusionExecutor]:
        """Return the executor class that `config.executor_class` names.

        Raises:
            PluginError: There is none, or it cannot be imported.
        """
        registry = plugins if plugins is not None else default_registry()
        return registry.resolve_executor(config.executor_class).cls

    @property
    def engine_id(self) -> str:
        """The id that plugins get: the number of the engine among those of this process, as text."""
        return self._hooks.engine_id

    @property
    def executor(self) -> DiffusionExecutor:
        """The executor that runs the work."""
        return self._core.executor.wrapped

    @property
    def sleep_level(self) -> int:
        """The sleep level of the workers; 0 is awake."""
        return self._core.sleeping.level

    @property
    def pipeline_info(self) -> PipelineInfo | None:
        """Which arguments the pipeline takes; None if the executor cannot tell."""
        return self._pipeline_info

    def step(self, requests: Sequence[OmniDiffusionRequest], timeout: float | None = None) -> list[OmniRequestOutput]:
        """Run requests and wait for all of them.

        Args:
            requests: What to run.
            timeout: Seconds to wait for all of them together.

        Returns:
            One output per request, in their order. One that fails has `finish_reason="error"` and an `error`, and does
            not disturb the others.

        Raises:
            RequestError: A request does not fit the pipeline; none was started.
            EngineClosedError: The engine is closed.
            TimeoutError: They did not end in time; they are aborted.
        """
        refuse_to_wait("engine.step()", self._core.thread_owners, "Use engine.submit() there", for_request=True)
        handles = self.submit_all(requests)
        try:
            return wait_all(handles, timeout)
        except BaseException:  # KeyboardInterrupt and TimeoutError: the results are not needed any more
            for handle in handles:
                handle.abort()
            raise

    def submit_all(self, requests: Sequence[OmniDiffusionRequest]) -> list[RequestHandle]:
        """Submit several requests and return at once. If one is refused, none is submitted.

        Raises:
            RequestError: A request does not fit the pipeline, or an id is in use.
            EngineOverloadedError: The maximum number of requests is waiting.
            EngineClosedError: The engine is closed.
        """
        self._check_process()
        if not isinstance(requests, Sequence):  # a single request
            raise RequestError("A list of requests is expected: write [request].")
        for request in requests:
            if not isinstance(request, OmniDiffusionRequest):
                raise RequestError(f"A request must be an OmniDiffusionRequest, not a {type(request).__name__}.")
        try:
            for request in requests:
                self.check_request(request)
            return self._core.submit(list(requests), self._make_handle)
        except (RequestError, EngineOverloadedError) as error:
            for request in requests:
                self._hooks.notify("omni_request_refused", request=request, error=error)
            raise

    def check_request(self, request: OmniDiffusionRequest) -> None:
        """Return if the pipeline takes a request and it is within the limits. Nothing is submitted.

        `submit` checks this too: use it for work that is to be submitted later.

        Raises:
            RequestError: It does not fit the pipeline, or is too large.
        """
        arguments: Mapping[str, Any]
        if self._pipeline_info is not None:
            arguments = self._pipeline_info.arguments(request)
        else:
            arguments = {name: getattr(request, name) for name in PASSED_BY_NAME}
        check_size(request, self.config, arguments)

    def submit(self, request: OmniDiffusionRequest) -> RequestHandle:
        """Submit a request and return at once.

        Returns:
            A handle to wait for it, follow it and abort it.

        Raises:
            RequestError: The request does not fit the pipeline, or its id is in use.
            EngineOverloadedError: The maximum number of requests is waiting.
            EngineClosedError: The engine is closed.
        """
        return self.submit_all([request])[0]

    def abort(self, request_id: str | Iterable[str]) -> None:
        """End a request before it starts, or at its next denoiser call. Does nothing if there is no such request.

        Args:
            request_id: Its id, or the ids of several.

        Raises:
            RequestError: That is no id.
        """
        self._check_process()
        is_one = isinstance(request_id, str) or not isinstance(request_id, Iterable)
        request_ids: list[Any] = [request_id] if is_one else list(request_id)
        for one in request_ids:
            if not isinstance(one, str):
                raise RequestError(f"A request_id is text, not a {type(one).__name__}: write request.request_id.")
        for one in request_ids:
            self._core.abort(one)

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        unique_reply_rank: int | None = None,
        *,
        non_block: bool = False,
    ) -> Any:
        """Call a method on every worker, between two steps.

        Args:
            method: Name of a method of the worker, or a callable that gets the worker as its first argument.
            timeout: Seconds to wait for the replies; None waits until they come.
            args: Further positional arguments.
            kwargs: Keyword arguments.
            unique_reply_rank: The rank whose reply is returned; None returns those of all.
            non_block: Return a `concurrent.futures.Future` of the result at once. `timeout` does not apply to it.

        Returns:
            A list with one result per rank of every replica, or one result if `unique_reply_rank` is given.

        Raises:
            RPCError: The call raised in a worker, or the worker has no such method.
            RPCTimeoutError: A reply did not come in time.
        """
        self._check_open()
        call = WorkerCall(0, method, args, kwargs)
        if non_block:
            return begin_call(self._core, call, unique_reply_rank)
        return make_call(self._core, call, wait_seconds(timeout), unique_reply_rank)

    def check_health(self) -> None:
        """Return if the engine can serve requests.

        Raises:
            EngineClosedError: It is closed.
            EngineDeadError: Its thread died.
            ExecutorError: Its workers cannot serve, or die under every request.
        """
        self._check_open()
        refuse_to_wait("engine.check_health()", self._core.thread_owners)
        self._core.executor.check_health()
        self._core.check_served()

    def stats(self, timeout: float | None = STATS_TIMEOUT_S, *, ask_workers: bool = True) -> EngineStats:
        """Return statistics of the engine: requests by state, and stacking.

        The numbers of requests are of one moment and need no waiting. For `stacking` the workers are called between
        two steps. This never waits for requests, also while the workers sleep.

        Args:
            ask_workers: Whether to call the workers. Without, `stacking` is None, and this returns at once.
            timeout: Seconds to wait for the workers. `stacking` is None if they do not reply in time, or if a replica
                is being replaced.
        """
        self._check_open()
        stats = self._core.stats()
        stats.workers = self._core.executor.worker_stats()
        if ask_workers:
            stats.stacking = ask_stacking(self._core.executor, wait_seconds(timeout))
        return stats

    def estimate(self, request: OmniDiffusionRequest) -> RequestEstimate | None:
        """Return how long a request will take, with all that is ahead of it.

        This waits for nothing and asks no worker, so that it can be called for each request and as often as one likes.
        See `RequestEstimate` for what it is made of.

        Args:
            request: One that waits or runs, which is known by its `request_id`; or else one that could be submitted
                now. It is not checked whether the pipeline would take it.

        Returns:
            The estimate; None while it cannot be told: before a request has done its first step, and while the workers
            sleep.

        Raises:
            RequestError: That is no request.
            EngineClosedError: The engine is closed.
        """
        self._check_open()
        if not isinstance(request, OmniDiffusionRequest):
            raise RequestError(f"A request must be an OmniDiffusionRequest, not a {type(request).__name__}.")
        return self._core.estimate(request)

    def sleep(self, level: int = 1, timeout: float | None = None) -> None:
        """Free accelerator memory until `wake_up`; requests that arrive meanwhile wait.

        Args:
            level: 1 moves the weights to host memory; 2 drops them, and running requests start again after `wake_up`.
            timeout: Seconds to wait for the workers; None waits until they sleep.

        Raises:
            ValidationError: There is no such level.
            RPCTimeoutError: A worker did not fall asleep in time. It may do so later: `wake_up` wakes all.
        """
        self._check_open()
        self._core.sleep(level, wait_seconds(timeout))

    def wake_up(self, timeout: float | None = None) -> None:
        """Restore the weights and serve waiting requests. Does nothing if the workers are awake.

        Args:
            timeout: Seconds to wait for the workers; None waits until they are awake.

        Raises:
            RPCTimeoutError: A worker was not awake in time. Requests continue to wait, and this can be called again.
        """
        self._check_open()
        self._core.wake_up(wait_seconds(timeout))

    def close(self) -> None:
        """End running requests, fail waiting ones with `EngineClosedError`, and end the workers. May be repeated."""
        self._finalizer()
        # A second caller returns when the first has finished, not before.
        _close_core(self._core, self._pid)

    @property
    def scheduler(self) -> vllm_omni.FormerScheduler:
        """Deprecated: for `engine.scheduler.add_req(requests)`, which is `engine.step(requests)`."""
        return vllm_omni.FormerScheduler(self)

    @classmethod
    def _get_executor_class(cls, config: OmniDiffusionConfig | None = None) -> type[DiffusionExecutor]:
        return vllm_omni.former_executor_class(cls, config)

    if not TYPE_CHECKING:  # type checkers must still refuse unknown names

        def __getattr__(self, name: str) -> Any:
            return vllm_omni.missing_attribute(self, name)

    def __enter__(self) -> DiffusionEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make_handle(self, request: OmniDiffusionRequest) -> RequestHandle:
        # A bound method, so that a handle keeps the engine alive.
        return RequestHandle(request, self.abort, self._core.thread_owners)

    def _check_open(self) -> None:
        self._check_process()
        self._core.check_open()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise EngineClosedError(
                "This engine was made in another process and did not survive the fork; make one in this process."
            )


def _close_core(core: EngineCore, pid: int) -> None:
    # In a forked child the threads are gone and the workers belong to the parent.
    if os.getpid() == pid:
        core.close()


if not TYPE_CHECKING:  # type checkers must still refuse unknown names

    def __getattr__(name: str) -> Any:
        raise vllm_omni.missing_from_module(__name__, name)
