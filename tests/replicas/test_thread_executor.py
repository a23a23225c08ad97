"""A back end that uses nothing of `wire/` has replacement, retry, watchdog, sleep and stats from `replicas/`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import thread_executor
from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.testing import ExecutorConformance
from thread_executor import ThreadExecutor


@pytest.mark.sampled
class TestThreads(ExecutorConformance):
    executor_class = ThreadExecutor


def test_it_is_short_and_uses_nothing_of_wire() -> None:
    text = Path(thread_executor.__file__).read_text()
    assert len(text.partition("def end(")[0].splitlines()) <= 250
    assert "omni_core.wire" not in text


def end(_worker: Any) -> None:
    sys.exit(3)


def test_a_worker_that_ends_is_replaced_and_its_requests_run_again(wait_until: Callable[..., None]) -> None:
    model = "omni_core.testing.pipelines:picture"
    with DiffusionEngine(OmniDiffusionConfig(executor_class=ThreadExecutor, model=model)) as engine:
        ask = OmniDiffusionRequest(prompt="a", seed=1, num_inference_steps=40, height=32, width=32)
        [wanted] = engine.step([ask])
        handle = engine.submit(ask)
        next(event for event in handle.events(30) if event.kind == "step")
        engine.executor.begin_rpc(end)
        output = handle.result(60)
        assert output.metrics.num_retries == 1
        assert output.images[0].tobytes() == wanted.images[0].tobytes()
        assert engine.stats().workers[0].restarts == 1
