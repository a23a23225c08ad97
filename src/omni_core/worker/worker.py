"""The worker: one copy of the model, and everything that can be asked of it."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch

from omni_core.config import OmniDiffusionConfig
from omni_core.engine_place import loading
from omni_core.errors import ConfigError, ExecutorError, OmniError, RPCError, did_you_mean
from omni_core.hookspecs import Hooks
from omni_core.log import get_logger
from omni_core.outputs import OmniRequestOutput, SchedulerOutput, StackingStats, StepOutput
from omni_core.pipeline_info import PipelineInfo
from omni_core.request import OmniDiffusionRequest, refuse_used_ids
from omni_core.worker.model_runner import ModelRunner
from omni_core.worker.parallel.layout import ParallelLayout
from omni_core.worker.parallel.rank_group import RankGroup
from omni_core.worker.parallel.replica_ranks import ReplicaRanks
from omni_core.worker.parallel.shared_forwards import enable, refuse_impossible
from omni_core.worker.pipeline.loader import load_pipeline, resolve_device
from omni_core.worker.pipeline.stand_ins import running_task

log = get_logger(__name__)


class DiffusionWorker:
    """Runs wherever the work is executed: in the engine's process, in a process of its own, on another machine.

    All methods but `interrupt` must be called from the thread that made the worker.

    Args:
        config: The configuration of the engine.
        replica: Which replica it belongs to.
        rank: Its rank within the replica.
        hooks: Plugins to tell when the pipeline is loaded.
        pipeline: A pipeline object to use instead of loading `config.model`.
        group: The ranks of the replica, `config.ranks_per_replica` of them, which are all given the same calls. Its
            owner closes it. Needed if there is more than one.

    Raises:
        ModelLoadError: The pipeline could not be built.
        ConfigError: It cannot do what the configuration asks for.
        RankGroupError: The ranks could not connect.
    """

    def __init__(
        self,
        config: OmniDiffusionConfig,
        *,
        replica: int = 0,
        rank: int = 0,
        hooks: Hooks | None = None,
        pipeline: Any = None,
        group: RankGroup | None = None,
    ) -> None:
        self.config = config
        self.group = group or RankGroup.alone()
        if self.group.world_size != config.ranks_per_replica:
            raise ConfigError(
                f"cfg_parallel_size = {config.cfg_parallel_size}, ring_degree = {config.ring_degree}, "
                f"ulysses_degree = {config.ulysses_degree} and tensor_parallel_size = {config.tensor_parallel_size} "
                f"make {config.ranks_per_replica} ranks, but this worker is one of {self.group.world_size}."
            )
        device = resolve_device(config.device, pipeline)
        refuse_impossible(config, device)
        self._ranks = ReplicaRanks(self.group, ParallelLayout.of(config), device)
        self.replica = replica
        self.rank = rank
        self._hooks = hooks
        self._given_pipeline = pipeline
        self._sleep_level = 0
        self._parked: list[OmniDiffusionRequest] = []
        self._runner: ModelRunner | None = None  # None while there are no weights
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        self._load()

    @property
    def pipeline(self) -> Any:
        """The loaded pipeline.

        Raises:
            ExecutorError: The worker sleeps.
        """
        return self._awake().loaded.pipeline

    @property
    def device(self) -> torch.device:
        """Where the worker computes."""
        return self._device

    def execute_step(self, scheduler_output: SchedulerOutput) -> StepOutput:
        """Advance the running requests. A worker that sleeps takes requests up and lets them wait.

        Raises:
            RequestError: A new request has the id of one that runs. Nothing was done.
        """
        if self._runner is not None:
            if self._sleep_level > 0:
                scheduler_output = dataclasses.replace(scheduler_output, waves=[])
            return self._runner.execute_step(scheduler_output)
        refuse_used_ids(scheduler_output.new_requests, {request.request_id for request in self._parked})
        self._parked.extend(scheduler_output.new_requests)
        ended = scheduler_output.ended_requests
        outputs = [
            OmniRequestOutput.ended(request, ended[request.request_id])
            for request in self._parked
            if request.request_id in ended
        ]
        self._parked = [request for request in self._parked if request.request_id not in ended]
        return StepOutput(finished=outputs)

    def execute_model(self, requests: list[OmniDiffusionRequest]) -> list[OmniRequestOutput]:
        """Run whole requests to their end. Requests that run step by step wait meanwhile.

        Args:
            requests: Each with an id of its own.

        Returns:
            One output per request, in their order.

        Raises:
            RequestError: Two of them have the same id. Nothing was run.
            ExecutorError: The worker sleeps.
        """
        refuse_used_ids(requests)
        # A runner of its own, so that no output of a request that runs step by step comes out here.
        runner = ModelRunner(self._awake().loaded, self.config.stacking, self._ranks)
        outputs: dict[str, OmniRequestOutput] = {}
        wave = tuple(request.request_id for request in requests)
        step = SchedulerOutput(new_requests=list(requests), waves=[wave])
        try:
            while step.new_requests or runner.is_busy:
                outputs.update({output.request_id: output for output in runner.execute_step(step).finished})
                step = SchedulerOutput(waves=[wave])
        finally:
            runner.close()
        return [outputs[request.request_id] for request in requests]

    def interrupt(self) -> None:
        """Let a running `execute_step` return after the wave that is running. May be called from any thread."""
        runner = self._runner
        if runner is not None:
            runner.interrupt()

    def stats(self) -> StackingStats:
        """Return what stacking did since the pipeline was loaded."""
        # A copy: where the caller is in this process, the worker would go on to change what it reads.
        return self._runner.stats + StackingStats() if self._runner is not None else StackingStats()

    def call(
        self, method: str | Callable[..., Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a method of this worker by name, or a callable that gets this worker as its first argument.

        Raises:
            RPCError: There is no such public method.
        """
        if callable(method):
            return method(self, *args, **(kwargs or {}))
        target = None if method.startswith("_") else getattr(self, method, None)
        if not callable(target):
            names = [
                name for name in dir(type(self)) if not name.startswith("_") and callable(getattr(type(self), name))
            ]
            raise RPCError(
                f"The worker has no method {method!r}.{did_you_mean(method, names)} It has: {', '.join(names)}. "
                "Methods are added with worker_extension_cls."
            )
        return target(*args, **(kwargs or {}))

    def describe_pipeline(self) -> PipelineInfo:
        """Return what the pipeline takes."""
        return self._info

    def check_health(self) -> None:
        """Return if the worker can serve: it answers, and its device does."""
        torch.zeros(1, device=self._device).add_(1).item()

    def sleep(self, level: int = 1) -> None:
        """Free accelerator memory. Level 1 moves the weights to host memory, level 2 drops them.

        Running requests stay where they are at level 1; at level 2 they begin again, from their seed, when the worker
        is woken.

        Raises:
            ExecutorError: Level 2 of a pipeline object that was given: it could not be loaded again. Level 2 within a
                request. Level 1 with tensor parallelism.
        """
        if level >= 2 and self._given_pipeline is not None:
            raise ExecutorError(
                "sleep(level=2) drops the weights, but this pipeline was given as an object and cannot be loaded "
                "again. Use level=1, or set model."
            )
        if level >= 2 and running_task() is not None:
            raise ExecutorError(
                "sleep(level=2) was called by a request that runs, in a callback perhaps: it would drop the pipeline "
                "that calls it. Call it in a thread of your own."
            )
        if level == 1 and self.config.tensor_parallel_size > 1:
            raise ExecutorError(
                "sleep(level=1) moves the weights to host memory, but with tensor_parallel_size they belong to the "
                "accelerators that share them. Use level=2."
            )
        if level <= self._sleep_level:
            return
        if level == 1 and self._runner is not None:
            self._runner.settle()
            self._move(torch.device("cpu"))
        elif self._runner is not None:
            self._parked = self._runner.drain()
            self._runner.close()
            self._runner = None
        self._sleep_level = level
        _release_memory()

    def wake_up(self) -> None:
        """Bring the weights back: from host memory after level 1, from the model's files after level 2."""
        if self._sleep_level == 1:
            self._move(self._device)
        elif self._sleep_level == 2:
            self._load().add(self._parked)
            self._parked = []
        self._sleep_level = 0

    def close(self) -> None:
        """End all running requests where they stand and let go of the pipeline."""
        if self._runner is not None:
            self._runner.close()
        self._runner = None
        self._given_pipeline = None

    def _load(self) -> ModelRunner:
        loaded = load_pipeline(self.config, self._given_pipeline, self._hooks, self)
        self._info: PipelineInfo = loaded.info
        self._device: torch.device = loaded.device
        enable(loaded, self.config, self._ranks)
        self._runner = ModelRunner(loaded, self.config.stacking, self._ranks)
        return self._runner

    def _awake(self) -> ModelRunner:
        if self._runner is None or self._sleep_level > 0:
            raise ExecutorError("The worker is asleep; call wake_up() first.")
        return self._runner

    def _move(self, device: torch.device) -> None:
        # On the CPU there is nothing to move, and offloaded pipelines are in host memory whenever they are idle.
        if self._device.type != "cpu" and self.config.offload == "none" and self._runner is not None:
            self._runner.loaded.pipeline.to(device)


def worker_class(config: OmniDiffusionConfig) -> type[DiffusionWorker]:
    """Return `DiffusionWorker`, with the methods of `worker_extension_cls` if one is configured.

    Raises:
        ConfigError: The extension cannot be imported, is no class, or has a name that the worker has.
    """
    path = config.worker_extension_cls
    if path is None:
        return DiffusionWorker
    module_name, _, name = path.partition(":")
    try:
        with loading(f"worker_extension_cls = {path!r}"):
            extension = getattr(importlib.import_module(module_name), name)
    except OmniError as error:
        raise ConfigError(f"worker_extension_cls = {path!r} cannot be imported: {error.message}") from error
    except Exception as error:
        raise ConfigError(
            f"worker_extension_cls = {path!r} cannot be imported: {type(error).__name__}: {error}. "
            "It must be an import path pkg.mod:Class."
        ) from error
    if not isinstance(extension, type):
        raise ConfigError(f"worker_extension_cls = {path!r} is a {type(extension).__name__}, not a class.")
    clashes = [member for member in vars(extension) if not member.startswith("__") and hasattr(DiffusionWorker, member)]
    if clashes:
        raise ConfigError(
            f"worker_extension_cls = {path!r} defines {', '.join(clashes)}, which the worker has already; rename it."
        )
    return type("DiffusionWorker", (DiffusionWorker, extension), {"__module__": DiffusionWorker.__module__})


def _release_memory() -> None:
    # Stand-ins and their classes refer to each other, so weights go only with a collection.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        # glibc keeps freed memory of this size in its arenas; without this the resident size would not fall.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
