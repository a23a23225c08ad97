"""`DiffusionEngine`: what users hold."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from omni_core.config import OmniDiffusionConfig
from omni_core.engine.core import EngineCore
from omni_core.engine.handle import RequestHandle, wait_all
from omni_core.errors import ConfigError, EngineClosedError, EngineError, RequestError, WorkerDiedError
from omni_core.executor import DiffusionExecutor, ExecutorContext
from omni_core.log import set_level
from omni_core.migration import FormerEngine, missing_from_module
from omni_core.outputs import EngineStats, OmniRequestOutput, StackingStats
from omni_core.pipeline_info import PipelineInfo
from omni_core.plugins import PluginRegistry, default_registry
from omni_core.request import OmniDiffusionRequest


class DiffusionEngine(FormerEngine):
    """Runs requests on any diffusers pipeline, where and how the configuration's executor says.

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
        ConfigError: The executor or the pipeline cannot do what the configuration asks for.
        PluginError: The executor cannot be used.
        StartupError: The executor could not start.
        ModelLoadError: The pipeline could not be built.
    """

    def __init__(
        self,
        config: OmniDiffusionConfig | None = None,
        *,
        pipeline: Any = None,
        plugins: PluginRegistry | None = None,
    ) -> None:
        self._refuse_former_ways_in()
        self.config = config if config is not None else OmniDiffusionConfig()
        if not isinstance(self.config, OmniDiffusionConfig):
            raise ConfigError(f"DiffusionEngine takes an OmniDiffusionConfig, not a {type(config).__name__}.")
        # First, since looking for plugins may already have something to say.
        if self.config.sources()["log_level"] != "default":
            set_level(self.config.log_level)
        self._plugins = plugins if plugins is not None else default_registry()
        self._plugins.call_strict("omni_configure", config=self.config)
        executor = _make_executor(self.config, pipeline, self._plugins)
        try:
            self._pipeline_info = executor.describe_pipeline()
            self._core = EngineCore(self.config, executor, self._plugins)
        except BaseException:
            executor.close()
            raise
        self._pid = os.getpid()
        # Runs when the engine is closed, collected, or the interpreter exits, whichever comes first.
        self._finalizer = weakref.finalize(self, _close_core, self._core, self._pid)
        self._plugins.notify("omni_engine_started", config=self.config, executor=executor)

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
    def executor(self) -> DiffusionExecutor:
        """The executor that runs the work."""
        return self._core.executor

    @property
    def pipeline_info(self) -> PipelineInfo | None:
        """What the pipeline takes; None if the executor cannot tell."""
        return self._pipeline_info

    def step(self, requests: Sequence[OmniDiffusionRequest], timeout: float | None = None) -> list[OmniRequestOutput]:
        """Run requests and wait for all of them.

        Args:
            requests: What to run.
            timeout: Seconds to wait in all.

        Returns:
            One output per request, in their order. One that fails has `finish_reason="error"` and an `error`, and does
            not disturb the others.

        Raises:
            RequestError: One of them does not fit the pipeline; none was started.
            EngineClosedError: The engine is closed.
            TimeoutError: They did not end in time; they are aborted.
        """
        self._refuse_engine_thread("step")
        handles = self.submit_all(requests)
        try:
            return wait_all(handles, timeout)
        except BaseException:  # KeyboardInterrupt and TimeoutError: nobody will ask for the results
            for handle in handles:
                handle.abort()
            raise

    def submit_all(self, requests: Sequence[OmniDiffusionRequest]) -> list[RequestHandle]:
        """Hand several requests over and return at once: all of them, or none if one is refused.

        Raises:
            RequestError: One of them does not fit the pipeline, or an id is in use.
            EngineOverloadedError: As many requests as may wait are waiting.
            EngineClosedError: The engine is closed.
        """
        self._check_process()
        if not isinstance(requests, Sequence):  # a single request
            raise RequestError("A list of requests is expected: write [request].")
        for request in requests:
            if not isinstance(request, OmniDiffusionRequest):
                raise RequestError(f"A request must be an OmniDiffusionRequest, not a {type(request).__name__}.")
            if self._pipeline_info is not None:
                self._pipeline_info.arguments(request)
        return self._core.submit(list(requests), self._make_handle)

    def submit(self, request: OmniDiffusionRequest) -> RequestHandle:
        """Hand a request over and return at once.

        Returns:
            A handle to wait for it, follow it and abort it.

        Raises:
            RequestError: The request does not fit the pipeline, or its id is in use.
            EngineOverloadedError: As many requests as may wait are waiting.
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
    ) -> Any:
        """Call a method on every worker, between two steps.

        Args:
            method: Name of a method of the worker, or a callable that gets the worker as its first argument.
            timeout: Seconds to wait for the replies; None waits until they come.
            args: Further positional arguments.
            kwargs: Keyword arguments.
            unique_reply_rank: Rank whose reply alone is wanted.

        Returns:
            A list with one result per rank of every replica, or one result if `unique_reply_rank` is given.

        Raises:
            RPCError: The call raised in a worker, or the worker has no such method.
            RPCTimeoutError: A reply did not come in time.
        """
        self._check_open()
        if method in ("sleep", "wake_up"):  # the engine must know, so that requests wait meanwhile
            getattr(self, str(method))(*args, **(kwargs or {}))
            return None if unique_reply_rank is not None else [None] * self.executor.num_replicas
        return self.executor.collective_rpc(method, timeout, args, kwargs, unique_reply_rank)

    def check_health(self) -> None:
        """Return if the engine can serve requests.

        Raises:
            EngineClosedError: It is closed.
            EngineDeadError: Its thread died.
            ExecutorError: Its workers cannot serve.
        """
        self._check_open()
        self.executor.check_health()

    def stats(self) -> EngineStats:
        """Return what the engine does and did: requests by state, and what stacking came to.

        The workers are asked between two steps. Asleep or not, this does not wait for requests. While a replica is
        being replaced, `stacking` is left out.
        """
        self._check_open()
        stats = self._core.stats()
        stats.workers = self.executor.worker_stats()
        executor = self.executor
        if executor.runs_diffusion_worker and all(map(executor.is_ready, range(executor.num_replicas))):
            with contextlib.suppress(WorkerDiedError):  # one has died just now
                replies: list[StackingStats] = self.executor.collective_rpc("stats")
                stats.stacking = sum(replies, StackingStats())
        return stats

    def sleep(self, level: int = 1) -> None:
        """Free accelerator memory until `wake_up`; requests that arrive meanwhile wait.

        Args:
            level: 1 moves the weights to host memory; 2 drops them, and running requests begin again when woken.
        """
        self._check_open()
        self.executor.sleep(level)

    def wake_up(self) -> None:
        """Bring the weights back and serve what waited. Does nothing if awake."""
        self._check_open()
        self.executor.wake_up()

    def close(self) -> None:
        """End running requests, fail waiting ones with `EngineClosedError`, and end the workers. May be repeated."""
        self._finalizer()
        # A second caller returns when the first has finished, not before.
        _close_core(self._core, self._pid)

    def __enter__(self) -> DiffusionEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make_handle(self, request: OmniDiffusionRequest) -> RequestHandle:
        # Through self, so that the engine lives at least as long as its requests.
        return RequestHandle(request, self.abort)

    def _refuse_engine_thread(self, what: str) -> None:
        if self._core.is_current:
            raise EngineError(
                f"engine.{what} waits for the engine's thread, but was called in it (in an observer or a done "
                "callback). Use engine.submit there, or call it from another thread."
            )

    def _check_open(self) -> None:
        self._check_process()
        self._core.check_open()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise EngineClosedError(
                "This engine was made in another process and did not survive the fork; make one in this process."
            )


def _make_executor(config: OmniDiffusionConfig, pipeline: Any, plugins: PluginRegistry) -> DiffusionExecutor:
    resolved = plugins.resolve_executor(config.executor_class)
    options = resolved.validate_options(config.executor_options)
    return resolved.cls(config, ExecutorContext(options, plugins, pipeline))


def _close_core(core: EngineCore, pid: int) -> None:
    # In a forked child the threads are gone and the workers belong to the parent.
    if os.getpid() == pid:
        core.close()


if not TYPE_CHECKING:  # type checkers shall go on to refuse names that do not exist

    def __getattr__(name: str) -> Any:
        raise missing_from_module(__name__, name)
