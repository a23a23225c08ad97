"""Requests in worker processes: pipelines that rearrange their parts, and requests that raise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest

CORE_TESTS = Path(__file__).parents[3] / "tests"


@pytest.fixture(autouse=True)
def _small_pipelines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small pipelines of the core's tests; workers get the same import path."""
    monkeypatch.syspath_prepend(str(CORE_TESTS))


def engine_of(model: str, **options: Any) -> DiffusionEngine:
    return DiffusionEngine(OmniDiffusionConfig(model=model, executor_class="multiproc", **options))


def test_pipelines_that_copy_and_replace_their_parts() -> None:
    from small_pipelines import rearranging

    with engine_of("small_pipelines.rearranging:every", stacking="off", max_num_seqs=12) as engine:
        outputs = engine.step(
            [
                OmniDiffusionRequest(num_inference_steps=4, seed=3, output_type="np", extra_args={"which": name})
                for name in rearranging.ARGUMENTS
            ]
        )
    for (name, arguments), output in zip(rearranging.ARGUMENTS.items(), outputs, strict=True):
        pipeline = rearranging.build(**arguments)
        pipeline.set_progress_bar_config(disable=True)
        right = pipeline(4, torch.Generator().manual_seed(3), "np").images
        assert np.array_equal(output.raise_for_error().output["images"], right), name


@pytest.fixture
def raising(_small_pipelines: None) -> Iterator[DiffusionEngine]:
    with engine_of("small_pipelines.raising:build", max_retries=0) as engine:
        yield engine


def test_whatever_a_request_raises_it_ends_alone(raising: DiffusionEngine) -> None:
    from small_pipelines.raising import ERRORS, PLACES, process_id

    pids = raising.collective_rpc(process_id)

    def request(seed: int, **extra_args: Any) -> OmniDiffusionRequest:
        fields: dict[str, Any] = {"prompt": "a red seven", "height": 32, "width": 32, "num_inference_steps": 3}
        return OmniDiffusionRequest(**fields, seed=seed, output_type="np", extra_args=extra_args)

    [right] = raising.step([request(1)])
    for place in PLACES:
        for error in sorted(ERRORS):
            good, bad = raising.step([request(1), request(2, fault=(place, error))])
            assert bad.finish_reason == "error"
            assert type(bad.error).__name__ == "PipelineError"
            assert error in str(bad.error)
            assert "raising.py" in str(bad.error.worker_traceback)
            gap = np.abs(np.asarray(good.raise_for_error().images) - np.asarray(right.raise_for_error().images)).max()
            assert gap <= 1e-4
    assert raising.collective_rpc(process_id) == pids, "a worker was lost"
