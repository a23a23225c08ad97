"""The executor of SPMD mode, in a program that torchrun has started."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, ClassVar, Literal

import torch

from omni_core import OmniDiffusionConfig, OmniDiffusionRequest, OmniRequestOutput
from omni_core.calls import WorkerReply, call_name
from omni_core.config import FieldMark, marked_fields
from omni_core.errors import ConfigError, ExecutorError, OmniError, RPCError, RPCTimeoutError, StartupError
from omni_core.executor import PARALLEL_OPTIONS, WORKER_OPTIONS, DiffusionExecutor, ExecutorContext
from omni_core.outputs import SchedulerOutput, StepOutput
from omni_core.timeouts import is_done_within, wait_seconds
from omni_core.worker.pipeline.loader import resolve_device
from omni_exec_torchrun.options import TorchrunOptions
from omni_exec_torchrun.spmd.fields import config_fields, request_fields
from omni_exec_torchrun.spmd.follower import Follower
from omni_exec_torchrun.spmd.leader import Leader, with_identity
from omni_exec_torchrun.spmd.messages import Identity
from omni_exec_torchrun.spmd.rank import PendingCall, SpmdRank
from omni_exec_torchrun.spmd.world import SpmdEnvironment, join, spmd_environment

__all__ = ["SpmdExecutor", "spmd_environment"]

Outputs = Literal["all", "rank0"]

_TIMEOUT_S = 600.0


class SpmdExecutor(DiffusionExecutor):
    """Runs one replica on all processes that torchrun has started. Each process creates an engine.

    All ranks submit the same requests and make the same calls, in the same order. The scheduler of rank 0 decides when
    requests run and which are batched; rank 0 also chooses unset seeds and the moment of aborts. If ranks submit
    different requests or calls, all ranks get an error that says what differs. If a rank is gone, all others get an
    error.

    Args:
        config: The configuration of the engine.
        context: What the engine passes besides.
        timeout_s: Seconds that one rank waits for another before it counts as lost. None: the value in `options`, else
            600.
        outputs: Which ranks get the outputs: `"all"` or `"rank0"`; with the latter, outputs of other ranks are empty.
            None: the value in `options`, else `"all"`.

    Raises:
        ConfigError: This program was not started by torchrun, or with another number of ranks than configured.
        StartupError: A rank did not connect, or could not start.
    """

    supported_options: ClassVar[frozenset[str]] = WORKER_OPTIONS | PARALLEL_OPTIONS
    runs_diffusion_worker: ClassVar[bool] = True
    can_interrupt: ClassVar[bool] = True
    accepts_pipeline: ClassVar[bool] = True

    def __init__(
        self,
        config: OmniDiffusionConfig,
        context: ExecutorContext | None = None,
        *,
        timeout_s: float | None = None,
        outputs: Outputs | None = None,
    ) -> None:
        options = context.options if context is not None else None
        self._timeout_s: float = getattr(options, "timeout_s", _TIMEOUT_S) if timeout_s is None else timeout_s
        self._outputs: Outputs = getattr(options, "outputs", "all") if outputs is None else outputs
        self._role: SpmdRank | None = None
        super().__init__(config, context)

    @property
    def name(self) -> str:
        """Name of the executor in messages."""
        return "torchrun (SPMD)"

    def _init_executor(self) -> None:
        if isinstance(self.options, TorchrunOptions):
            self.options.refuse_unused(spmd=True)
        environment = _checked_environment(self.config)
        place = _own_device(self.config, environment, self._pipeline)
        startup_s = self.config.startup_timeout_s
        world = join(environment, place, self._timeout_s, startup_s)
        try:
            if environment.rank == 0:
                self._role = Leader(world, self._timeout_s, startup_s, self.notify_change)
            else:
                keeps_outputs = self._outputs == "all"
                self._role = Follower(world, self._timeout_s, startup_s, self.notify_change, keeps_outputs)
        except BaseException:
            world.leave(broken=True)
            raise
        # As a call, so that all ranks get an error if one of them cannot load.
        call = PendingCall("load the pipeline", partial(self._make_worker, self._role, place), startup_s, frozenset())
        loading = self._role.call(call, config_fields(self.config))
        if not is_done_within(loading, wait_seconds(startup_s)):
            raise StartupError(
                f"Loading the pipeline on all {environment.world_size} ranks took more than startup_timeout_s = "
                f"{startup_s:g} s."
            )
        _raise_startup_error(loading.result(), environment.rank)

    def _make_worker(self, role: SpmdRank, place: torch.device, _: Any, __: list[Identity]) -> None:
        from omni_core.worker.worker import worker_class

        config = self.config
        if place.type == "cuda":
            torch.cuda.set_device(place)
            if self._pipeline is None or config.device != "auto":
                config = config.replace(device=str(place))
        role.worker = worker_class(config)(
            config, rank=role.rank, hooks=self.plugins, pipeline=self._pipeline, group=role.world.group
        )

    def execute_step(self, replica: int, scheduler_output: SchedulerOutput) -> Future[StepOutput]:
        """On rank 0, run a step on all ranks. On other ranks, return the news about this rank's requests."""
        return self._started().execute_step(scheduler_output)

    def interrupt(self, replica: int) -> None:
        """Let the running `execute_step` return early."""
        if self._role is not None:
            self._role.interrupt()

    def execute_model(self, requests: list[OmniDiffusionRequest]) -> list[OmniRequestOutput]:
        """Run whole requests, the same on all ranks. The engine's own requests wait until they have ended."""

        def run(worker: Any, identities: list[Identity]) -> list[OmniRequestOutput]:
            outputs: list[OmniRequestOutput] = worker.execute_model(list(map(with_identity, requests, identities)))
            return outputs

        role = self._started()
        identities = [Identity(request.request_id, request.seed) for request in requests]
        call = PendingCall("execute_model", run, self._timeout_s, frozenset(), identities)
        fields = {"the call": call.name, "its number of requests": str(len(requests))}
        for index, request in enumerate(requests):
            fields.update({f"request {index}: {name}": text for name, text in request_fields(request).items()})
        outputs: list[OmniRequestOutput] = _results(role.call(call, fields).result(), 1)[role.rank]
        for request, output in zip(requests, outputs, strict=True):
            output.request_id = request.request_id
            if role.rank != 0 and self._outputs == "rank0":
                output.output = {}
        return outputs

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        unique_reply_rank: int | None = None,
    ) -> Any:
        """Call a method on every worker, between two steps. All ranks must make the call.

        Each rank calls its own worker with its own method and arguments, which need not be picklable; only the name of
        the method is compared. Results are sent to the other ranks, so they must be picklable.
        """
        seconds = wait_seconds(timeout)
        future = self.begin_rpc(method, args, kwargs, unique_reply_rank)
        if not is_done_within(future, seconds):
            raise RPCTimeoutError(
                f"The call {call_name(method)!r} did not return on all ranks within {seconds:g} s. If it has begun, it "
                "runs on, and its result is dropped."
            )
        return future.result()

    def begin_rpc(
        self,
        method: str | Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        unique_reply_rank: int | None = None,
    ) -> Future[Any]:
        """Begin a call of a method on every worker, as `collective_rpc` does, and return at once.

        The call is numbered when this returns. Ranks must begin the same calls in the same order.
        """
        role = self._started()
        world_size = role.world.group.world_size
        if unique_reply_rank is not None and unique_reply_rank not in range(world_size):
            raise RPCError(f"There is no rank {unique_reply_rank}: there are {world_size}, 0 to {world_size - 1}.")
        name = call_name(method)
        reply_ranks = range(world_size) if unique_reply_rank is None else (unique_reply_rank,)
        call = PendingCall(
            name, lambda worker, _: worker.call(method, args, kwargs), self._timeout_s, frozenset(reply_ranks)
        )
        outcome: Future[Any] = Future()
        outcome.set_running_or_notify_cancel()

        def settle(done: Future[list[WorkerReply]]) -> None:
            try:
                results = _results(done.result(), world_size)
            except BaseException as error:
                outcome.set_exception(error)
            else:
                outcome.set_result(results if unique_reply_rank is None else results[unique_reply_rank])

        role.call(call, {"the call": name}).add_done_callback(settle)
        return outcome

    def check_health(self) -> None:
        """Return if no fault of any rank is known."""
        role = self._started()
        if role.fault is not None:
            raise role.fault
        if role.worker is None or role.is_closing:
            raise ExecutorError("The worker of this rank is gone: the executor was shut down, or never started.")

    @property
    def fault(self) -> OmniError | None:
        """Why the ranks cannot continue together."""
        return self._role.fault if self._role is not None else None

    def request_queued(self, request: OmniDiffusionRequest) -> None:
        """Number a request. The order of submission is the same on all ranks."""
        self._started().submit_request(request)

    def request_ended(self, request_id: str, error: OmniError | None) -> None:
        """Handle the end of a request in this rank's engine."""
        if self._role is not None and not self._role.is_closing:
            self._role.end_request(request_id, error)

    def shutdown(self) -> None:
        """Leave the other ranks, and close the worker of this one."""
        if self._role is not None:
            self._role.close()

    def _started(self) -> SpmdRank:
        if self._role is None:
            raise ExecutorError("The executor did not start.")
        return self._role


def _checked_environment(config: OmniDiffusionConfig) -> SpmdEnvironment:
    environment = spmd_environment()
    if environment is None:
        raise ConfigError(
            "SPMD mode needs a program that torchrun started: torchrun --nproc-per-node "
            f"{config.ranks_per_replica} script.py"
        )
    if config.data_parallel_size > 1:
        raise ConfigError(
            f"data_parallel_size = {config.data_parallel_size} is not for programs that torchrun started: their ranks "
            "form one replica. Use driver mode (start the program with python, without torchrun), which spreads "
            "requests over replicas."
        )
    if environment.world_size != config.ranks_per_replica:
        sizes = " x ".join(f"{name} {getattr(config, name)}" for name in marked_fields(FieldMark.RANKS))
        raise ConfigError(
            f"torchrun started {environment.world_size} processes, and the configuration asks for "
            f"{config.ranks_per_replica}: {sizes}. Make them equal."
        )
    return environment


def _own_device(config: OmniDiffusionConfig, environment: SpmdEnvironment, pipeline: Any) -> torch.device:
    device = resolve_device(config.device, pipeline)
    if device.type == "cuda" and ":" not in str(device):
        return torch.device("cuda", environment.local_rank % torch.cuda.device_count())
    return device


def _raise_startup_error(replies: list[WorkerReply], rank: int) -> None:
    if (own := replies[rank].error) is not None:
        raise own
    for other, reply in enumerate(replies):
        if reply.error is not None:
            raise StartupError(
                f"Rank {other} could not start: {reply.error.message}", worker_traceback=reply.error.worker_traceback
            )


def _results(replies: list[WorkerReply], world_size: int) -> list[Any]:
    """Return the results of a call, or raise the error of the first rank that failed."""
    for rank, reply in enumerate(replies):
        error = reply.error
        if error is not None:
            if world_size > 1 and type(error) is RPCError:
                message = f"{error.message} (On rank {rank}.)"
                raise RPCError(message, worker_traceback=error.worker_traceback)
            raise error
    return [reply.value for reply in replies]
