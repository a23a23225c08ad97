"""Calls the executor for the engine, and checks each result.

Executors are plugins. A result or an exception that the contract does not allow becomes a `ContractError`, which names
the executor, the method, the result and the result that is expected.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from omni_core.calls import call_name
from omni_core.config import OmniDiffusionConfig
from omni_core.engine.checked_step import CheckedStep, check_step_output
from omni_core.error_text import described_error
from omni_core.errors import ContractError, ExecutorError, OmniError, RPCError
from omni_core.executor import DiffusionExecutor
from omni_core.outputs import SchedulerOutput, StepOutput, WorkerStats
from omni_core.pipeline_info import PipelineInfo
from omni_core.request import OmniDiffusionRequest
from omni_core.serial_thread import ThreadClosedError
from omni_core.validation import described

T = TypeVar("T")


class CheckedExecutor:
    """Wraps an executor that has started. The engine calls the executor only through this class.

    Args:
        executor: The executor.
        config: The configuration of the engine.

    Raises:
        ContractError: One of its properties is already invalid.

    Attributes:
        wrapped: The executor itself.
        name: Its name in messages.
        num_replicas: How many replicas it has.
        num_workers: How many workers: the ranks of all replicas.
        runs_whole_requests: Whether requests cannot be stopped once they have begun.
    """

    def __init__(self, executor: DiffusionExecutor, config: OmniDiffusionConfig) -> None:
        self.wrapped = executor
        self.name = type(executor).__name__
        if not hasattr(executor, "_change_listeners"):
            raise ContractError(
                f"The executor {self.name} is not made whole: its __init__ must call super().__init__(config, context)."
            )
        name = self._call("name", lambda: executor.name)
        if not isinstance(name, str):
            raise self._wrong("name", name, "a str")
        self.name = name
        number = self._call("num_replicas", lambda: executor.num_replicas)
        if type(number) is not int or number != config.data_parallel_size:
            raise self._wrong("num_replicas", number, f"data_parallel_size, which is {config.data_parallel_size}")
        self.num_replicas: int = number
        self.num_workers = number * config.ranks_per_replica
        self.runs_whole_requests = not executor.runs_diffusion_worker
        # The derived `execute_step` returns what `execute_model` made.
        is_derived = type(executor).execute_step is DiffusionExecutor.execute_step
        self.step_method = "execute_model" if is_derived else "execute_step"
        self.fault()
        for replica in range(number):
            self.is_ready(replica)
        self.worker_stats()

    # For the engine's thread. These return at once.

    def is_ready(self, replica: int) -> bool:
        """Whether a replica takes steps."""
        ready = self._call(f"is_ready({replica})", lambda: self.wrapped.is_ready(replica))
        if not isinstance(ready, bool):
            raise self._wrong(f"is_ready({replica})", ready, "a bool")
        return ready

    def fault(self) -> OmniError | None:
        """Why no replica will take steps for now."""
        fault = self._call("fault", lambda: self.wrapped.fault)
        if fault is not None and not isinstance(fault, OmniError):
            raise self._wrong("fault", fault, "None or an OmniError")
        return fault

    def execute_step(
        self, replica: int, scheduler_output: SchedulerOutput, done: Callable[[Future[StepOutput]], None]
    ) -> Future[StepOutput]:
        """Begin a step.

        Args:
            replica: Index of the replica.
            scheduler_output: What to do.
            done: Called with the future when it has its result, from any thread.

        Raises:
            ContractError: The executor returned something else than a future.
            BaseException: The executor raised it; the replica has failed.
        """
        future: Any = self.wrapped.execute_step(replica, scheduler_output)
        if not isinstance(future, Future):
            raise self._wrong("execute_step", future, "a concurrent.futures.Future of a StepOutput")
        future.add_done_callback(done)
        return future

    def check_step(
        self,
        replica: int,
        future: Future[StepOutput],
        placed: dict[str, OmniDiffusionRequest],
        strays: Container[str] = (),
    ) -> CheckedStep:
        """Return the result of a step, checked.

        Args:
            replica: Index of the replica.
            future: What `execute_step` returned, done.
            placed: The requests that run on the replica, by id.
            strays: Ids of requests that the engine has taken away from the replica, which it may still report.

        Raises:
            ContractError: The result is malformed.
            BaseException: The step failed with it.
        """
        return check_step_output(future.result(), f"{self.name}.{self.step_method}", replica, placed, strays)

    def interrupt(self, replica: int) -> None:
        """Let a running step return early."""
        self._call(f"interrupt({replica})", lambda: self.wrapped.interrupt(replica))

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have the executor call `listener` when `is_ready` or `fault` may have changed."""
        self._call("on_change", lambda: self.wrapped.on_change(listener))

    def request_queued(self, request: OmniDiffusionRequest) -> None:
        """Notify the executor that a request was accepted."""
        self._call("request_queued", lambda: self.wrapped.request_queued(request))

    def request_ended(self, request_id: str, error: OmniError | None) -> None:
        """Notify the executor that a request has ended."""
        self._call("request_ended", lambda: self.wrapped.request_ended(request_id, error))

    # For callers, from any thread.

    def describe_pipeline(self) -> PipelineInfo | None:
        """Return what the pipeline takes."""
        info = self._call("describe_pipeline", self.wrapped.describe_pipeline)
        if info is not None and not isinstance(info, PipelineInfo):
            raise self._wrong("describe_pipeline", info, "a PipelineInfo or None")
        return info

    def worker_stats(self) -> list[WorkerStats]:
        """Return what is known about each worker."""
        stats: Any = self._call("worker_stats", self.wrapped.worker_stats)
        if not isinstance(stats, list) or not all(isinstance(one, WorkerStats) for one in stats):
            raise self._wrong("worker_stats", stats, "a list of WorkerStats")
        return stats

    def check_health(self) -> None:
        """Return if requests can be served."""
        result: Any = self._call("check_health", self.wrapped.check_health)
        if result is not None:
            raise self._wrong("check_health", result, "None, or raise an ExecutorError")

    def begin_rpc(
        self,
        method: str | Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        unique_reply_rank: int | None,
    ) -> Future[Any]:
        """Begin a call of a method on every worker."""
        future: Any = self._call(
            "begin_rpc", lambda: self.wrapped.begin_rpc(method, args, kwargs, unique_reply_rank), RPCError
        )
        if not isinstance(future, Future):
            raise self._wrong("begin_rpc", future, "a concurrent.futures.Future")
        checked: Future[Any] = Future()
        checked.set_running_or_notify_cancel()

        def reply() -> Any:
            try:
                return future.result()
            except (CancelledError, ThreadClosedError):
                raise ExecutorError(
                    f"The executor {self.name} dropped the call {call_name(method)!r} before it had ended, as it does "
                    "when it is shut down."
                ) from None

        def settle(done: Future[Any]) -> None:
            try:
                replies = self._call("begin_rpc", reply, RPCError)
                self._check_replies("begin_rpc", replies, unique_reply_rank)
            except BaseException as error:
                checked.set_exception(error)
            else:
                checked.set_result(replies)

        future.add_done_callback(settle)
        return checked

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        unique_reply_rank: int | None = None,
    ) -> Any:
        """Call a method on every worker."""
        replies = self._call(
            "collective_rpc",
            lambda: self.wrapped.collective_rpc(method, timeout, args, kwargs, unique_reply_rank),
            RPCError,
        )
        self._check_replies("collective_rpc", replies, unique_reply_rank)
        return replies

    def _check_replies(self, method: str, replies: Any, unique_reply_rank: int | None) -> None:
        if unique_reply_rank is None and (not isinstance(replies, list) or len(replies) != self.num_workers):
            what = f"{len(replies)} results" if isinstance(replies, list) else replies
            raise self._wrong(
                method, what, f"a list with one result per rank of every replica, {self.num_workers} in all"
            )

    def close(self) -> None:
        """End the workers."""
        self._call("shutdown", self.wrapped.close, ExecutorError)

    def _call(self, method: str, call: Callable[[], T], kind: type[ExecutorError] = ContractError) -> T:
        try:
            return call()
        except OmniError:
            raise
        except BaseException as error:
            # A signal handler may have raised KeyboardInterrupt or SystemExit in the main thread: it ends the program.
            if not isinstance(error, Exception) and threading.current_thread() is threading.main_thread():
                raise
            raise kind(
                f"The executor {self.name}: {method} raised {described_error(error)}. What goes wrong in it must be "
                "raised as an ExecutorError, or another OmniError."
            ) from error

    def _wrong(self, method: str, result: Any, wanted: str) -> ContractError:
        return ContractError(
            f"The executor {self.name} broke its contract: {method} returned {described(result)}, and must return "
            f"{wanted}."
        )
