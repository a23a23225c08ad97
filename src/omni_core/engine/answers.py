"""The one place where an executor is asked, and where what it answers is checked.

Executors are written by others. Whatever one returns or raises that the contract does not allow becomes a
`ContractError` here, which names the executor, the method, what it returned and what it must return.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from omni_core.calls import call_name
from omni_core.config import OmniDiffusionConfig
from omni_core.engine.step_answer import StepAnswer, check_step_output
from omni_core.error_text import described_error
from omni_core.errors import ContractError, ExecutorError, OmniError, RPCError
from omni_core.executor import DiffusionExecutor
from omni_core.outputs import SchedulerOutput, StepOutput, WorkerStats
from omni_core.pipeline_info import PipelineInfo
from omni_core.request import OmniDiffusionRequest
from omni_core.serial_thread import ThreadClosedError
from omni_core.validation import described

T = TypeVar("T")


class ExecutorAnswers:
    """Asks an executor that has started, for the engine.

    Args:
        executor: Who is asked.
        config: The configuration of the engine.

    Raises:
        ContractError: It answers at once what it must not.

    Attributes:
        executor: The executor itself.
        name: Its name in messages.
        num_replicas: How many replicas it has.
        num_workers: How many workers: the ranks of all replicas.
        runs_whole_requests: Whether requests cannot be stopped once they have begun.
    """

    def __init__(self, executor: DiffusionExecutor, config: OmniDiffusionConfig) -> None:
        self.executor = executor
        self.name = type(executor).__name__
        if not hasattr(executor, "_change_listeners"):
            raise ContractError(
                f"The executor {self.name} is not made whole: its __init__ must call super().__init__(config, context)."
            )
        name = self._ask("name", lambda: executor.name)
        if not isinstance(name, str):
            raise self._wrong("name", name, "a str")
        self.name = name
        number = self._ask("num_replicas", lambda: executor.num_replicas)
        if type(number) is not int or number != config.data_parallel_size:
            raise self._wrong("num_replicas", number, f"data_parallel_size, which is {config.data_parallel_size}")
        self.num_replicas: int = number
        self.num_workers = number * config.ranks_per_replica
        self.runs_whole_requests = not executor.runs_diffusion_worker
        # Where `execute_step` is the one that is derived, what comes back is made by `execute_model`.
        is_derived = type(executor).execute_step is DiffusionExecutor.execute_step
        self.step_method = "execute_model" if is_derived else "execute_step"
        self.fault()
        for replica in range(number):
            self.is_ready(replica)
        self.worker_stats()

    # For the engine's thread. These return at once.

    def is_ready(self, replica: int) -> bool:
        """Whether a replica takes steps."""
        ready = self._ask(f"is_ready({replica})", lambda: self.executor.is_ready(replica))
        if not isinstance(ready, bool):
            raise self._wrong(f"is_ready({replica})", ready, "a bool")
        return ready

    def fault(self) -> OmniError | None:
        """Why no replica will take steps for now."""
        fault = self._ask("fault", lambda: self.executor.fault)
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
            done: Is called with the future once it has its result, from any thread.

        Raises:
            ContractError: It gave no future.
            BaseException: Whatever the executor raised: the replica has failed with it.
        """
        future: Any = self.executor.execute_step(replica, scheduler_output)
        if not isinstance(future, Future):
            raise self._wrong("execute_step", future, "a concurrent.futures.Future of a StepOutput")
        future.add_done_callback(done)
        return future

    def step_answer(
        self,
        replica: int,
        future: Future[StepOutput],
        placed: dict[str, OmniDiffusionRequest],
        strays: Container[str] = (),
    ) -> StepAnswer:
        """Return what became of a step.

        Args:
            replica: Index of the replica.
            future: What `execute_step` gave.
            placed: The requests that the replica has.
            strays: Ids of those that were taken away from it, and of which it may still tell.

        Raises:
            ContractError: What it tells cannot be true.
            BaseException: With what the step failed.
        """
        return check_step_output(future.result(), f"{self.name}.{self.step_method}", replica, placed, strays)

    def interrupt(self, replica: int) -> None:
        """Let a running step return early."""
        self._ask(f"interrupt({replica})", lambda: self.executor.interrupt(replica))

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have the executor call `listener` when it is to be asked again."""
        self._ask("on_change", lambda: self.executor.on_change(listener))

    def request_queued(self, request: OmniDiffusionRequest) -> None:
        """Tell the executor of a request that was accepted."""
        self._ask("request_queued", lambda: self.executor.request_queued(request))

    def request_ended(self, request_id: str, error: OmniError | None) -> None:
        """Tell the executor of a request that has ended."""
        self._ask("request_ended", lambda: self.executor.request_ended(request_id, error))

    # For callers, from any thread.

    def describe_pipeline(self) -> PipelineInfo | None:
        """Return what the pipeline takes."""
        info = self._ask("describe_pipeline", self.executor.describe_pipeline)
        if info is not None and not isinstance(info, PipelineInfo):
            raise self._wrong("describe_pipeline", info, "a PipelineInfo or None")
        return info

    def worker_stats(self) -> list[WorkerStats]:
        """Return what is known about each worker."""
        stats: Any = self._ask("worker_stats", self.executor.worker_stats)
        if not isinstance(stats, list) or not all(isinstance(one, WorkerStats) for one in stats):
            raise self._wrong("worker_stats", stats, "a list of WorkerStats")
        return stats

    def check_health(self) -> None:
        """Return if requests can be served."""
        answer: Any = self._ask("check_health", self.executor.check_health)
        if answer is not None:
            raise self._wrong("check_health", answer, "None, or raise an ExecutorError")

    def begin_rpc(
        self,
        method: str | Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        unique_reply_rank: int | None,
    ) -> Future[Any]:
        """Begin a call of a method on every worker."""
        future: Any = self._ask(
            "begin_rpc", lambda: self.executor.begin_rpc(method, args, kwargs, unique_reply_rank), RPCError
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
                replies = self._ask("begin_rpc", reply, RPCError)
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
        replies = self._ask(
            "collective_rpc",
            lambda: self.executor.collective_rpc(method, timeout, args, kwargs, unique_reply_rank),
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
        self._ask("shutdown", self.executor.close, ExecutorError)

    def _ask(self, method: str, call: Callable[[], T], kind: type[ExecutorError] = ContractError) -> T:
        try:
            return call()
        except OmniError:
            raise
        except BaseException as error:
            # What is no Exception ends this program, if it was raised in the main thread, as by a signal's handler.
            if not isinstance(error, Exception) and threading.current_thread() is threading.main_thread():
                raise
            raise kind(
                f"The executor {self.name}: {method} raised {described_error(error)}. What goes wrong in it must be "
                "raised as an ExecutorError, or another OmniError."
            ) from error

    def _wrong(self, method: str, answer: Any, wanted: str) -> ContractError:
        return ContractError(
            f"The executor {self.name} broke its contract: {method} returned {described(answer)}, and must return "
            f"{wanted}."
        )
