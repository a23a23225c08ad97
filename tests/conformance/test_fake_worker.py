"""The worker without a model keeps the promises of the real one, and needs no torch."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from omni_core import DiffusionEngine, DiffusionExecutor, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.calls import WorkerCall, WorkerReply, serve
from omni_core.errors import RequestAbortedError, RPCError
from omni_core.outputs import OmniRequestOutput, SchedulerOutput, StepOutput
from omni_core.testing.fake_worker import FakeWorker
from omni_core.worker.worker import DiffusionWorker


class InAThread(DiffusionExecutor):
    """An executor as an author would begin: one worker, reached through the loop that every worker process runs."""

    runs_diffusion_worker = True
    can_interrupt = True

    def _init_executor(self) -> None:
        self._calls: queue.SimpleQueue[WorkerCall | None] = queue.SimpleQueue()
        self._replies: dict[int, Future[Any]] = {}
        self._numbers = iter(range(1 << 30))
        self.worker = FakeWorker(self.config)
        self._thread = threading.Thread(target=serve, args=(self.worker, self), daemon=True)
        self._thread.start()

    def receive(self) -> WorkerCall | None:
        return self._calls.get()

    def reply(self, reply: WorkerReply) -> None:
        future = self._replies.pop(reply.call_id)
        if reply.error is not None:
            future.set_exception(reply.error)
        else:
            future.set_result(reply.value)

    def _send(self, method: Any, *args: Any, **kwargs: Any) -> Future[Any]:
        number = next(self._numbers)
        future = self._replies[number] = Future()
        self._calls.put(WorkerCall(number, method, args, kwargs))
        return future

    def execute_step(self, replica: int, scheduler_output: SchedulerOutput) -> Future[StepOutput]:
        return self._send("execute_step", scheduler_output)

    def interrupt(self, replica: int) -> None:
        self.worker.interrupt()

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        unique_reply_rank: int | None = None,
    ) -> Any:
        result = self._send(method, *args, **(kwargs or {})).result(timeout)
        return [result] if unique_reply_rank is None else result

    def execute_model(self, requests: list[OmniDiffusionRequest]) -> list[OmniRequestOutput]:
        outputs: list[OmniRequestOutput] = self._send("execute_model", requests).result(10)
        return outputs

    def check_health(self) -> None:
        assert self._thread.is_alive()

    def shutdown(self) -> None:
        self._calls.put(None)
        self._thread.join(10)


@pytest.fixture
def engine() -> Any:
    with DiffusionEngine(OmniDiffusionConfig(executor_class=InAThread)) as made:
        yield made


def test_it_has_the_methods_of_the_real_one() -> None:
    public = {
        name for name in vars(DiffusionWorker) if not name.startswith("_") and callable(getattr(DiffusionWorker, name))
    }
    assert public - {"stats"} <= set(dir(FakeWorker))


def test_requests_advance_step_by_step(engine: DiffusionEngine) -> None:
    handles = engine.submit_all([OmniDiffusionRequest(seed=seed, num_inference_steps=5 + seed) for seed in range(20)])
    for seed, handle in enumerate(handles):
        output = handle.result(20)
        assert output.images == [seed]
        steps = [event.step for event in handle.past_events() if event.kind == "step"]
        assert steps == sorted(set(steps))
        assert steps[-1] == 5 + seed
    assert [output.images for output in engine.executor.execute_model([OmniDiffusionRequest(seed=3)])] == [[3]]


def test_an_abort_takes_effect(engine: DiffusionEngine) -> None:
    handle = engine.submit(OmniDiffusionRequest(num_inference_steps=100_000))
    next(event for event in handle.events(timeout=10) if event.kind == "step")
    handle.abort()
    with pytest.raises(RequestAbortedError):
        handle.result(10).raise_for_error()


def test_it_rests_while_it_sleeps(engine: DiffusionEngine) -> None:
    engine.sleep()
    handle = engine.submit(OmniDiffusionRequest(seed=7))
    assert engine.collective_rpc(lambda worker: worker.sleep_level) == [1]
    assert not handle.done()
    engine.wake_up()
    assert handle.result(10).images == [7]


def test_names_that_it_has_not(engine: DiffusionEngine) -> None:
    for name in ("sleeep", "_advance"):
        with pytest.raises(RPCError, match=name):
            engine.collective_rpc(name)


def test_it_needs_no_torch() -> None:
    code = "import sys, omni_core.testing.fake_worker; assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
