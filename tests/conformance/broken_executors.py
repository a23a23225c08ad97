"""Executors with one fault each. The suite must find it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from typing import Any, ClassVar

from omni_core import OmniDiffusionRequest, OmniRequestOutput, PluginRegistry
from omni_core.errors import RPCTimeoutError
from omni_core.executor import OPTIONS_TO_DECLARE
from omni_core.executors.inline import InlineExecutor
from omni_core.outputs import SchedulerOutput, StepOutput

_numbers = itertools.count()


class _ChangesSteps(InlineExecutor):
    """Changes what goes into a step, or what comes out of it."""

    def change_input(self, scheduler_output: SchedulerOutput) -> SchedulerOutput:
        return scheduler_output

    def change_output(self, step_output: StepOutput) -> None:
        pass

    def execute_step(self, replica: int, scheduler_output: SchedulerOutput) -> Future[StepOutput]:
        changed = self.change_input(scheduler_output)

        def run() -> StepOutput:
            step_output = self._worker.execute_step(changed)
            self.change_output(step_output)
            return step_output

        return self._submit(run)


class DropsARequest(_ChangesSteps):
    def change_output(self, step_output: StepOutput) -> None:
        step_output.finished = [output for output in step_output.finished if next(_numbers) % 4 != 3]


class DoesNotServe(InlineExecutor):
    """Starts, and does nothing that it is asked for."""

    def execute_step(self, replica: int, scheduler_output: SchedulerOutput) -> Future[StepOutput]:
        raise RuntimeError("the worker is on strike")

    def execute_model(self, requests: list[OmniDiffusionRequest]) -> list[OmniRequestOutput]:
        raise RuntimeError("the worker is on strike")

    def collective_rpc(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("the worker is on strike")


class LosesOrder(InlineExecutor):
    def execute_model(self, requests: list[OmniDiffusionRequest]) -> list[OmniRequestOutput]:
        return super().execute_model(requests)[::-1]


class SwapsOutputs(_ChangesSteps):
    """Each gets the picture that was made before its own."""

    kept: dict[str, Any] | None = None

    def change_output(self, step_output: StepOutput) -> None:
        for output in step_output.finished:
            if output.output:
                self.kept, output.output = output.output, self.kept or output.output


class WrongSeeds(_ChangesSteps):
    def change_input(self, scheduler_output: SchedulerOutput) -> SchedulerOutput:
        new = [request.model_copy(update={"seed": request.seed + 1}) for request in scheduler_output.new_requests]
        return dataclasses.replace(scheduler_output, new_requests=new)


class IgnoresAborts(_ChangesSteps):
    def change_input(self, scheduler_output: SchedulerOutput) -> SchedulerOutput:
        return dataclasses.replace(scheduler_output, ended_requests={})


class TellsNoProgress(_ChangesSteps):
    def change_output(self, step_output: StepOutput) -> None:
        step_output.progress = []


class SwallowsErrors(_ChangesSteps):
    def change_output(self, step_output: StepOutput) -> None:
        for output in step_output.finished:
            output.finish_reason, output.error = "finished", None


class GivesLateReplies(InlineExecutor):
    """A reply that nobody waits for any more goes to who calls next."""

    late: Future[Any] | None = None

    def collective_rpc(
        self,
        method: Any,
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        unique_reply_rank: int | None = None,
    ) -> Any:
        late, self.late = self.late, None
        if late is not None:
            return late.result() if unique_reply_rank is not None else [late.result()]
        future = self._submit(lambda: self._worker.call(method, args, kwargs))
        self.interrupt(0)
        try:
            result = future.result(timeout)
        except TimeoutError:
            self.late = future
            raise RPCTimeoutError("wait_then_return took too long") from None
        return result if unique_reply_rank is not None else [result]


class WidensBfloat16(InlineExecutor):
    def collective_rpc(self, *args: Any, **kwargs: Any) -> Any:
        import torch

        result = super().collective_rpc(*args, **kwargs)
        if isinstance(result, torch.Tensor) and result.dtype == torch.bfloat16:
            return result.float()
        return result


class ReusesMemory(InlineExecutor):
    """Large results share one buffer."""

    buffer: Any = None

    def collective_rpc(self, *args: Any, **kwargs: Any) -> Any:
        result = super().collective_rpc(*args, **kwargs)
        if getattr(result, "nbytes", 0) > 2**20:
            if self.buffer is None or self.buffer.shape != result.shape:
                self.buffer = result
            self.buffer[...] = result
            return self.buffer
        return result


class LeaksAThread(InlineExecutor):
    def _init_executor(self) -> None:
        super()._init_executor()
        threading.Thread(target=threading.Event().wait, args=(60,), daemon=True).start()


class LeaksADescriptor(InlineExecutor):
    def _init_executor(self) -> None:
        super()._init_executor()
        os.open(os.devnull, os.O_RDONLY)


class LeaksAProcess(InlineExecutor):
    def _init_executor(self) -> None:
        super()._init_executor()
        self.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


class LeaksSharedMemory(InlineExecutor):
    # In use for as long as this process lives: or another run of the suite at the same time would take it for its own.
    in_use: ClassVar[list[Any]] = []

    def _init_executor(self) -> None:
        import torch

        super()._init_executor()
        file = f"/dev/shm/{shared_memory_prefix()}{next(_numbers)}"
        self.in_use.append(torch.from_file(file, shared=True, size=1, dtype=torch.uint8))


def shared_memory_prefix() -> str:
    """How the names begin of the shared memory that this process leaks."""
    return f"omni-broken-{os.getpid()}-"


class LeaksAfterAFailedStart(InlineExecutor):
    def _init_executor(self) -> None:
        os.open(os.devnull, os.O_RDONLY)
        super()._init_executor()

    def shutdown(self) -> None:
        super().shutdown()


class HangsInClose(InlineExecutor):
    def shutdown(self) -> None:
        threading.Event().wait(6)
        super().shutdown()


class WaitsBusily(InlineExecutor):
    def _init_executor(self) -> None:
        super()._init_executor()
        self.ended = False
        threading.Thread(target=self._spin, daemon=True).start()

    def _spin(self) -> None:
        while not self.ended:
            time.sleep(0)

    def shutdown(self) -> None:
        self.ended = True
        super().shutdown()


class SleepsNot(InlineExecutor):
    def collective_rpc(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        return [None] if method in ("sleep", "wake_up") else super().collective_rpc(method, *args, **kwargs)


class AnswersHealthInTurn(InlineExecutor):
    """`check_health` waits for the step that runs."""

    def check_health(self) -> None:
        super().check_health()
        self._submit(lambda: None).result()


class SaysThatItIsIll(InlineExecutor):
    """`check_health` answers instead of raising."""

    def check_health(self) -> Any:
        return False


class GivesNoFuture(InlineExecutor):
    def execute_step(self, replica: int, scheduler_output: SchedulerOutput) -> Any:
        return super().execute_step(replica, scheduler_output).result()


class TellsAnotherSeed(_ChangesSteps):
    """The picture is right, and what is said of it is not."""

    def change_output(self, step_output: StepOutput) -> None:
        for output in step_output.finished:
            output.seed += 1


class DeclaresTooMuch(InlineExecutor):
    supported_options = frozenset(OPTIONS_TO_DECLARE)


class ForgetsHooks(InlineExecutor):
    """Lets its worker find plugins anew: those that were given in code are not among them."""

    def _make_worker(self) -> None:
        self.plugins = PluginRegistry()
        super()._make_worker()


class NeverReplaces(InlineExecutor):
    """Has a process that is nobody's worker, and does not care when it dies."""

    def _init_executor(self) -> None:
        super()._init_executor()
        self.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    def worker_pids(self) -> list[list[int]]:
        return [[self.process.pid]]

    def shutdown(self) -> None:
        super().shutdown()
        with contextlib.suppress(AttributeError):
            self.process.kill()
            self.process.wait()


class LeavesWorkersBehind(NeverReplaces):
    def shutdown(self) -> None:
        InlineExecutor.shutdown(self)
