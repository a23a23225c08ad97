"""What an engine says of when a request will be done."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from engine.tampering import Tampered, executor_of, make_engine
from engine.test_waiting import FakeInline
from omni_core import (
    AsyncDiffusionEngine,
    DiffusionEngine,
    OmniDiffusionConfig,
    OmniDiffusionRequest,
    PluginRegistry,
    RequestEstimate,
    hookimpl,
)
from omni_core.errors import EngineClosedError, RequestError, WorkerDiedError

PATIENCE_S = 20.0
STEP_S = 0.03


def ask(steps: int = 5, **fields: Any) -> OmniDiffusionRequest:
    return OmniDiffusionRequest(seed=1, num_inference_steps=steps, **fields)


def slowly(method: str, replica: int, answer: Any) -> Any:
    if method == "the step":
        time.sleep(STEP_S)
    return answer


def tracked(engine: DiffusionEngine) -> int:
    estimates = engine._core._estimates
    return len(estimates._works) + sum(map(len, estimates._placed))


@pytest.mark.parametrize("replicas", [1, 2])
def test_an_estimate_is_within_a_factor_of_two(replicas: int) -> None:
    with make_engine(data_parallel_size=replicas, max_num_seqs=2) as engine:
        executor_of(engine).tamper = slowly
        assert engine.estimate(ask()) is None
        engine.step([ask() for _ in range(6)])
        alone = engine.estimate(ask())
        assert alone is not None
        assert (alone.queue_s, alone.position) == (0.0, 0)
        assert 5 * STEP_S / 2 <= alone.seconds <= 5 * STEP_S * 2
        requests = [ask() for _ in range(10 * replicas)]
        began = time.monotonic()
        handles = engine.submit_all(requests)
        said = [engine.estimate(request) for request in requests]
        unsubmitted = engine.estimate(ask())
        ended = []
        for handle in handles:
            handle.result(PATIENCE_S)
            ended.append(time.monotonic() - began)
        for estimate, truth in zip(said, ended, strict=True):
            assert estimate is not None
            assert truth / 2 <= estimate.seconds <= truth * 2, (truth, estimate)
        assert unsubmitted is not None
        last = said[-1]
        assert last is not None
        assert unsubmitted.seconds >= last.seconds
        assert unsubmitted.position > 0
        assert tracked(engine) == 0


def test_of_a_request_that_runs() -> None:
    go_on = threading.Event()

    def held(method: str, replica: int, answer: Any) -> Any:
        if method == "the step":
            assert go_on.wait(PATIENCE_S)
        return answer

    with make_engine(data_parallel_size=1, max_num_seqs=1) as engine:
        executor_of(engine).tamper = slowly
        engine.step([ask()])
        executor_of(engine).tamper = held
        running, waiting = ask(100), ask(100)
        handles = engine.submit_all([running, waiting])
        while engine.stats(ask_workers=False).running == 0:
            time.sleep(0.001)
        first, second = engine.estimate(running), engine.estimate(waiting)  # though the worker stands still
        go_on.set()
        for handle in handles:
            handle.result(PATIENCE_S)
        assert first is not None
        assert second is not None
        assert (first.queue_s, first.position) == (0.0, 0)
        assert second.position == 0
        assert 0 < first.seconds <= second.queue_s * 1.1 < second.seconds


def test_nothing_is_said_while_it_cannot_be_told() -> None:
    with make_engine() as engine:
        with pytest.raises(RequestError, match="must be an OmniDiffusionRequest, not a str"):
            engine.estimate("a")  # type: ignore[arg-type]
        engine.step([ask()])
        assert isinstance(engine.estimate(ask()), RequestEstimate)
        engine.sleep()
        assert engine.estimate(ask()) is None
        engine.wake_up()
        assert engine.estimate(ask()) is not None
    with pytest.raises(EngineClosedError):
        engine.estimate(ask())


def test_a_request_whose_worker_died_waits_again() -> None:
    deaths = iter([False, True])
    held = threading.Event()

    def dies(method: str, replica: int, answer: Any) -> Any:
        if method == "the step" and next(deaths, False):
            raise WorkerDiedError("it is gone")
        if method == "is_ready":
            return not held.is_set()
        return answer

    class Dies(Tampered):
        def execute_step(self, replica: int, scheduler_output: Any) -> Any:
            future = super().execute_step(replica, scheduler_output)
            future.add_done_callback(lambda done: held.set() if done.exception() else None)
            return future

    with make_engine(Dies, data_parallel_size=1) as engine:
        engine.step([ask(1)])
        engine.executor.tamper = dies  # type: ignore[attr-defined]
        request = ask(3)
        handle = engine.submit(request)
        assert held.wait(PATIENCE_S)
        while engine.stats(ask_workers=False).waiting == 0:
            time.sleep(0.001)
        found = engine.estimate(request)
        assert found is not None
        assert found.seconds >= 0
        assert engine._core._estimates._placed == [{}]
        handle.abort()
        handle.result(PATIENCE_S)
        assert tracked(engine) == 0


def test_from_many_threads_and_from_an_observer() -> None:
    class Observer:
        engine: DiffusionEngine | None = None

        def __init__(self) -> None:
            self.seen: list[RequestEstimate | None] = []

        @hookimpl
        def omni_request_step(self, request_id: str) -> None:
            if self.engine is not None:
                self.seen.append(self.engine.estimate(ask(request_id=request_id)))

        @hookimpl
        def omni_output(self, request: OmniDiffusionRequest) -> None:
            if self.engine is not None:
                assert self.engine.estimate(request) == RequestEstimate(0.0, 0.0, 0)

    observer = Observer()
    failures: list[BaseException] = []
    plugins = PluginRegistry()
    plugins.register(observer, "observer")
    config = OmniDiffusionConfig(executor_class=Tampered, log_level="error")
    with DiffusionEngine(config, plugins=plugins) as engine:
        observer.engine = engine
        stop = threading.Event()

        def hammer() -> None:
            try:
                while not stop.is_set():
                    found = engine.estimate(ask())
                    assert found is None or 0 <= found.queue_s <= found.seconds
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=hammer) for _ in range(3)]
        for thread in threads:
            thread.start()
        handles = engine.submit_all([ask(priority=number % 3) for number in range(60)])
        for handle in handles[::3]:
            handle.abort()
        outputs = [handle.result(PATIENCE_S) for handle in handles]
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
        observer.engine = None
        assert {output.finish_reason for output in outputs} <= {"finished", "aborted"}
        assert failures == []
        assert observer.seen
        assert tracked(engine) == 0


def test_of_the_asynchronous_engine() -> None:
    async def main() -> None:
        async with AsyncDiffusionEngine(OmniDiffusionConfig(executor_class=FakeInline)) as engine:
            assert engine.estimate(ask()) is None
            await engine.step([ask()])
            assert engine.estimate(ask()) is not None

    asyncio.run(main())
