"""A request that fails in a forward pass which it shares: it alone fails, and those after it are stacked as before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.testing.pipelines import class_conditional

STEPS = 4
BAD_LABEL = 5000  # the model knows far fewer


def ask(label: int) -> OmniDiffusionRequest:
    return OmniDiffusionRequest(
        seed=label, num_inference_steps=STEPS, output_type="np", extra_args={"class_labels": [label]}
    )


def bare(label: int) -> Any:
    generator = torch.Generator().manual_seed(label)
    return class_conditional()(
        class_labels=[label], num_inference_steps=STEPS, output_type="np", generator=generator
    ).images


@pytest.fixture(scope="module")
def right() -> dict[int, Any]:
    return {label: bare(label) for label in (1, 2, 3)}


@pytest.mark.parametrize("stacking", ["verified", "trusted"])
@pytest.mark.parametrize("bad_comes_first", [True, False])
def test_a_bad_label_is_the_error_of_one_request(right: dict[int, Any], stacking: str, bad_comes_first: bool) -> None:
    with pytest.raises(IndexError) as raised:
        bare(BAD_LABEL)
    with DiffusionEngine(OmniDiffusionConfig(stacking=stacking), pipeline=class_conditional()) as engine:
        for labels in ([1, BAD_LABEL, 2], [1, 2, 3], [BAD_LABEL, 3, 1, 2], [3, 2, 1])[not bad_comes_first :]:
            before = engine.stats().stacking
            outputs = engine.step([ask(label) for label in labels])
            for label, output in zip(labels, outputs, strict=True):
                if label == BAD_LABEL:
                    assert output.finish_reason == "error"
                    assert f"IndexError: {raised.value}" in str(output.error)
                else:
                    assert np.abs(output.raise_for_error().output["images"] - right[label]).max() <= 1e-5
        stats = engine.stats().stacking
    assert before is not None
    assert stats is not None
    assert not stats.refused
    assert stats.forwards - before.forwards == STEPS, "three requests, one forward for each step"


FAULTS: list[Callable[[], BaseException]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory."),
    lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."),
    MemoryError,
]


@pytest.mark.parametrize("fault", FAULTS, ids=["cuda", "cpu", "host"])
@pytest.mark.parametrize("stacking", ["verified", "trusted"])
def test_memory_that_is_short_once_costs_nobody_a_picture_and_stacking_goes_on(
    right: dict[int, Any], stacking: str, fault: Callable[[], BaseException]
) -> None:
    pipeline = class_conditional()
    shortages = 1

    def run_out(_module: Any, _args: Any, kwargs: Any) -> None:
        nonlocal shortages
        if shortages and len(kwargs.get("class_labels", ())) > 4:
            shortages -= 1
            raise fault()

    pipeline.transformer.register_forward_pre_hook(run_out, with_kwargs=True)
    with DiffusionEngine(OmniDiffusionConfig(stacking=stacking), pipeline=pipeline) as engine:
        for _ in range(8):
            for label, output in zip((1, 2, 3), engine.step([ask(label) for label in (1, 2, 3)]), strict=True):
                assert np.abs(output.raise_for_error().output["images"] - right[label]).max() <= 1e-5
        before = engine.stats().stacking
        engine.step([ask(label) for label in (1, 2, 3)])
        stats = engine.stats().stacking
    assert shortages == 0
    assert before is not None
    assert stats is not None
    assert not stats.refused
    assert stats.forwards - before.forwards == STEPS
