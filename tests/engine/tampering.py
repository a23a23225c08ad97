"""An executor without torch, with two replicas, whose answers can be made wrong."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from omni_core import (
    DiffusionEngine,
    DiffusionExecutor,
    OmniDiffusionConfig,
    OmniDiffusionRequest,
    OmniRequestOutput,
    SchedulerOutput,
    StepOutput,
    WorkerStats,
)
from omni_core.errors import RPCTimeoutError
from omni_core.executor import WORKER_OPTIONS
from omni_core.serial_thread import SerialThread
from omni_core.testing.fake_worker import FakeWorker

Tamper = Callable[[str, int, Any], Any]


class Tampered(DiffusionExecutor):
    """Two replicas, each a thread. `tamper(method, replica, answer)` gives what is answered instead, or raises."""

    supported_options = WORKER_OPTIONS | {"data_parallel_size"}
    runs_diffusion_worker = True
    can_interrupt = True
    # Set on the class where the start itself is tampered with.
    tamper: Tamper | None = None

    def told(self, method: str, replica: int, answer: Any) -> Any:
        return self.tamper(method, replica, answer) if self.tamper is not None else answer

    def _init_executor(self) -> None:
        self.workers = [FakeWorker(replica=index) for index in range(self.config.data_parallel_size)]
        self.threads = [SerialThread(f"tampered-{index}") for index in range(len(self.workers))]

    def execute_step(self, replica: int, scheduler_output: SchedulerOutput) -> Future[StepOutput]:
        def run() -> StepOutput:
            step_output = self.workers[replica].execute_step(scheduler_output)
            return self.told("the step", replica, step_output)  # type: ignore[no-any-return]

        future = self.threads[replica].submit(run)
        return self.told("execute_step", replica, future)  # type: ignore[no-any-return]

    def interrupt(self, replica: int) -> None:
        self.workers[replica].interrupt()
        return self.told("interrupt", replica, None)  # type: ignore[no-any-return]

    def is_ready(self, replica: int) -> bool:
        return self.told("is_ready", replica, True)  # type: ignore[no-any-return]

    @property
    def fault(self) -> Any:
        return self.told("fault", 0, None)

    @property
    def num_replicas(self) -> int:
        return self.told("num_replicas", 0, self.config.data_parallel_size)  # type: ignore[no-any-return]

    @property
    def name(self) -> str:
        return self.told("name", 0, "Tampered")  # type: ignore[no-any-return]

    def describe_pipeline(self) -> Any:
        return self.told("describe_pipeline", 0, self.workers[0].describe_pipeline())

    def worker_stats(self) -> list[WorkerStats]:
        return self.told("worker_stats", 0, [WorkerStats(0, 0, None, "idle")])  # type: ignore[no-any-return]

    def check_health(self) -> None:
        return self.told("check_health", 0, None)  # type: ignore[no-any-return]

    def on_change(self, listener: Callable[[], None]) -> None:
        super().on_change(listener)
        self.told("on_change", 0, None)

    def request_queued(self, request: OmniDiffusionRequest) -> None:
        self.told("request_queued", 0, None)

    def request_ended(self, request_id: str, error: Any) -> None:
        self.told("request_ended", 0, None)

    def begin_rpc(self, *arguments: Any, **keywords: Any) -> Any:
        return self.told("begin_rpc", 0, super().begin_rpc(*arguments, **keywords))

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        unique_reply_rank: int | None = None,
    ) -> Any:
        futures = [
            thread.submit(worker.call, method, args, kwargs)
            for thread, worker in zip(self.threads, self.workers, strict=True)
        ]
        try:
            replies = [future.result(timeout) for future in futures]
        except TimeoutError:
            raise RPCTimeoutError(f"{method} took longer than {timeout} s") from None
        return self.told("collective_rpc", 0, replies if unique_reply_rank is None else replies[unique_reply_rank])

    def execute_model(self, requests: list[OmniDiffusionRequest]) -> list[OmniRequestOutput]:
        return self.workers[0].execute_model(requests)

    def shutdown(self) -> None:
        for thread in self.threads:
            thread.close(5.0)
        self.told("shutdown", 0, None)


def make_engine(executor_class: type[DiffusionExecutor] = Tampered, **fields: Any) -> DiffusionEngine:
    fields = {"data_parallel_size": 2, "log_level": "error", **fields}
    return DiffusionEngine(OmniDiffusionConfig(executor_class=executor_class, **fields))


def executor_of(engine: DiffusionEngine) -> Tampered:
    assert isinstance(engine.executor, Tampered)
    return engine.executor
