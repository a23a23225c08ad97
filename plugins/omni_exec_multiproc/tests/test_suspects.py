"""Requests that end their worker: the others are served, whatever it takes to find out which ones they are."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest, PluginRegistry, hookimpl
from omni_core.errors import EngineError, WorkerDiedError
from omni_core.testing.injection import fault
from omni_core.testing.odd_values import RaisesWhenRead

MODEL = "omni_core.testing.pipelines:faulty"
PATIENCE_S = 120.0


def ask(seed: int, **extra_args: Any) -> OmniDiffusionRequest:
    return OmniDiffusionRequest(
        prompt="a red seven",
        height=32,
        width=32,
        num_inference_steps=4,
        guidance_scale=4.0,
        seed=seed,
        output_type="np",
        extra_args=extra_args,
    )


@pytest.fixture(scope="module")
def expected() -> list[Any]:
    """The pictures of the seeds 0 to 3."""
    with DiffusionEngine(OmniDiffusionConfig(model=MODEL)) as engine:
        return [engine.step([ask(seed)])[0].raise_for_error().images for seed in range(4)]


# When the worker ends: while it reads the request, in its first step, in its last.
KILLERS: dict[str, Callable[[], dict[str, Any]]] = {
    "before the first step": lambda: {"note": RaisesWhenRead("end")},
    "in the first step": lambda: {"fault": fault("kill", step=1)},
    "in the last step": lambda: {"fault": fault("exit", step=4)},
}


@pytest.mark.parametrize(("when", "number", "max_retries"), [
    ("before the first step", 3, 2),
    ("before the first step", 1, 6),
    ("in the first step", 3, 2),
    ("in the last step", 2, 1),
])  # fmt: skip
def test_the_innocent_are_served(when: str, number: int, max_retries: int, expected: list[Any]) -> None:
    config = OmniDiffusionConfig(model=MODEL, executor_class="multiproc", max_retries=max_retries)
    with DiffusionEngine(config) as engine:
        killers = [ask(9, **KILLERS[when]()) for _ in range(number)]
        innocent = [ask(seed % 4) for seed in range(20)]
        requests = [*innocent[:5], *killers, *innocent[5:]]
        outputs = {output.request_id: output for output in engine.step(requests, PATIENCE_S)}
        for request in innocent:
            output = outputs[request.request_id].raise_for_error()
            assert np.abs(np.asarray(output.images) - np.asarray(expected[request.seed])).max() <= 1e-4
        for request in killers:
            with pytest.raises(WorkerDiedError, match=rf"died under it \d+ times \(max_retries = {max_retries}\)"):
                outputs[request.request_id].raise_for_error()
            assert outputs[request.request_id].metrics.num_retries >= max_retries
        assert engine.step([ask(1)], PATIENCE_S)[0].raise_for_error().images is not None
        engine.check_health()


class Observer:
    """Does in `omni_worker_died` what it is given, and notes what comes of it."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action = action
        self.done = threading.Event()
        self.error: BaseException | None = None

    @hookimpl
    def omni_worker_died(self) -> None:
        try:
            self._action()
        except BaseException as error:
            self.error = error
        self.done.set()


def _killed_with(action: Callable[[DiffusionEngine], object]) -> tuple[DiffusionEngine, Observer]:
    plugins = PluginRegistry()
    observer = Observer(lambda: action(engine))
    plugins.register(observer, name="observer")
    engine = DiffusionEngine(OmniDiffusionConfig(model=MODEL, executor_class="multiproc"), plugins=plugins)
    [[pid]] = engine.executor.worker_pids()  # type: ignore[attr-defined]
    os.kill(pid, signal.SIGKILL)
    assert observer.done.wait(PATIENCE_S)
    return engine, observer


def test_waiting_where_a_death_is_told_is_refused() -> None:
    engine, observer = _killed_with(lambda engine: engine.check_health())
    with engine:
        assert isinstance(observer.error, EngineError)
        assert "the thread that watches the workers" in str(observer.error)
        assert engine.step([ask(1)], PATIENCE_S)[0].finish_reason == "finished"


def test_an_engine_may_be_closed_where_a_death_is_told(wait_until: Callable[..., None]) -> None:
    engine, observer = _killed_with(lambda engine: engine.close())
    assert observer.error is None
    engine.close()
    wait_until(lambda: not any(thread.name.startswith("omni-") for thread in threading.enumerate()))
