"""What the engine does when a replica fails: its requests run again, and a request that kills its worker dies alone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ClassVar

import numpy as np
import pytest

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest, SchedulerOutput, StepOutput
from omni_core.errors import ExecutorError, OmniError, WorkerDiedError
from omni_core.executors.inline import InlineExecutor


class MortalExecutor(InlineExecutor):
    """Inline, but its worker loses everything whenever a step is told to die, as a process would."""

    instances: ClassVar[list[MortalExecutor]] = []

    def _init_executor(self) -> None:
        super()._init_executor()
        self.dies: Callable[[set[str], int], bool] = lambda _running, _step: False
        self.stays_away = False
        self.deaths: list[set[str]] = []
        self._fault: OmniError | None = None
        self._ready = True
        self._steps = 0
        self._running: set[str] = set()
        self.instances.append(self)

    def execute_step(self, replica: int, scheduler_output: SchedulerOutput) -> Future[StepOutput]:
        assert self._ready, "a replica that is not ready was given work"
        self._steps += 1
        self._running |= {request.request_id for request in scheduler_output.new_requests}
        if self.dies(self._running, self._steps):
            self.deaths.append(self._running)
            self._running = set()
            self._ready = False
            self._submit(self._worker._runner.drain).result(10)
            if not self.stays_away:
                self.come_back()
            failed: Future[StepOutput] = Future()
            failed.set_exception(WorkerDiedError("The worker was killed by SIGKILL.", replica=replica, rank=0))
            return failed
        future = super().execute_step(replica, scheduler_output)
        future.add_done_callback(self._forget_finished)
        return future

    def _forget_finished(self, future: Future[StepOutput]) -> None:
        self._running -= {output.request_id for output in future.result().finished}

    def come_back(self) -> None:
        self._ready = True
        self.notify_change()

    def fail_for_good(self) -> None:
        self._fault = ExecutorError("The worker died 6 times in a row.")
        self.notify_change()

    def is_ready(self, replica: int) -> bool:
        return self._ready

    @property
    def fault(self) -> OmniError | None:
        return self._fault


@pytest.fixture
def mortal() -> Any:
    config = OmniDiffusionConfig(executor_class=MortalExecutor, max_num_seqs=4, log_level="error")
    with DiffusionEngine(config) as engine:
        yield engine


def ask(name: str, **fields: Any) -> OmniDiffusionRequest:
    fields = {"prompt": "a red seven", "seed": 1, "output_type": "np", "num_inference_steps": 6, **fields}
    return OmniDiffusionRequest(request_id=name, **fields)


def test_requests_of_a_dead_worker_run_again_and_give_the_same(mortal: DiffusionEngine) -> None:
    requests = [ask(f"r{seed}", seed=seed) for seed in range(4)]
    expected = [output.raise_for_error().output["images"] for output in mortal.step(requests)]
    executor = MortalExecutor.instances[-1]
    at = executor._steps + 2
    executor.dies = lambda _running, step: step == at
    handles = mortal.submit_all(requests)
    outputs = [handle.result(60).raise_for_error() for handle in handles]
    assert len(executor.deaths) == 1
    for output, wanted in zip(outputs, expected, strict=True):
        assert np.abs(output.output["images"] - wanted).max() <= 1e-5
    assert sum(output.metrics.num_retries for output in outputs) == len(executor.deaths[0]) > 0
    for handle, output in zip(handles, outputs, strict=True):
        kinds = [event.kind for event in handle.past_events()]
        assert kinds.count("retrying") == output.metrics.num_retries
        assert kinds.count("started") <= 1
        assert kinds.count("finished") == 1


def test_only_the_request_that_kills_workers_fails(mortal: DiffusionEngine) -> None:
    executor = MortalExecutor.instances[-1]
    executor.dies = lambda running, _step: "poison" in running
    requests = [ask("a"), ask("b"), ask("poison"), ask("c"), ask("d")]
    outputs = mortal.step(requests, timeout=60)
    assert [output.finish_reason for output in outputs] == ["finished", "finished", "error", "finished", "finished"]
    error = outputs[2].error
    assert isinstance(error, WorkerDiedError)
    for words in ("'poison'", "3 times", "max_retries = 2", "SIGKILL"):
        assert words in str(error)
    assert len(executor.deaths) == 3
    assert executor.deaths[2] == {"poison"}, "it has no company any more once it was found"
    # Those that were begun before it may be with it when it is found, and begin once more.
    assert max(output.metrics.num_retries for output in outputs if output.finish_reason == "finished") <= 2


def test_an_engine_whose_workers_die_under_every_request_is_not_healthy(mortal: DiffusionEngine) -> None:
    executor = MortalExecutor.instances[-1]
    executor.dies = lambda _running, _step: True
    for number in range(5):
        mortal.check_health()
        [output] = mortal.step([ask(f"r{number}")], timeout=60)
        assert isinstance(output.error, WorkerDiedError)
    with pytest.raises(ExecutorError, match="The last 5 requests were given up"):
        mortal.check_health()
    executor.dies = lambda _running, _step: False
    mortal.step([ask("again")], timeout=60)[0].raise_for_error()
    mortal.check_health()


def test_a_request_that_was_aborted_does_not_come_back(mortal: DiffusionEngine) -> None:
    executor = MortalExecutor.instances[-1]
    aborted = ask("aborted", num_inference_steps=400)

    was_asked: list[bool] = []
    executor.dies = lambda running, _step: "aborted" in running and bool(was_asked)
    submitted = mortal.submit(aborted)
    next(event for event in submitted.events(30) if event.kind == "step")
    was_asked.append(True)
    submitted.abort()
    # The abort and the death may meet in the same call, or the death comes first: it is never run to its end.
    assert submitted.result(30).finish_reason == "aborted"


def test_what_waits_fails_when_no_replica_will_be_ready_and_is_served_when_one_is(
    mortal: DiffusionEngine, wait_until: Callable[..., None]
) -> None:
    executor = MortalExecutor.instances[-1]
    executor.stays_away = True
    executor.dies = lambda _running, step: len(executor.deaths) == 0
    waiting = mortal.submit_all([ask("a"), ask("b")])
    wait_until(lambda: len(executor.deaths) == 1)
    assert not any(handle.done() for handle in waiting)
    executor.fail_for_good()
    for handle in waiting:
        output = handle.result(30)
        assert output.finish_reason == "error"
        with pytest.raises(ExecutorError, match="6 times in a row"):
            output.raise_for_error()
    # Nobody waits for a replica that may not come; once it has come, requests are served again.
    assert mortal.step([ask("c")], timeout=30)[0].finish_reason == "error"
    executor._fault = None
    executor.come_back()
    assert mortal.step([ask("d")], timeout=30)[0].finish_reason == "finished"
