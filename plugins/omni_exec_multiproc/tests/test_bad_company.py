"""A request that fails in a forward pass which it shares, in a worker process and on the ranks of one replica."""

from __future__ import annotations

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
    return (
        class_conditional()(class_labels=[label], num_inference_steps=STEPS, output_type="np", generator=generator)
    ).images


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_bad_label_is_the_error_of_one_request(ranks: int) -> None:
    right = {label: bare(label) for label in (1, 2, 3)}
    config = OmniDiffusionConfig(
        executor_class="multiproc", model="omni_core.testing.pipelines:class_conditional", cfg_parallel_size=ranks
    )
    with DiffusionEngine(config) as engine:
        for labels in ([1, BAD_LABEL, 2], [1, 2, 3], [BAD_LABEL, 3, 1, 2], [3, 2, 1]):
            before = engine.stats().stacking
            outputs = engine.step([ask(label) for label in labels])
            for label, output in zip(labels, outputs, strict=True):
                if label == BAD_LABEL:
                    assert output.finish_reason == "error"
                    assert "IndexError: index out of range" in str(output.error)
                else:
                    assert np.abs(output.raise_for_error().output["images"] - right[label]).max() <= 1e-5
        stats = engine.stats()
    assert before is not None
    assert stats.stacking is not None
    assert not stats.stacking.refused
    assert stats.stacking.forwards - before.forwards == STEPS * ranks, "three requests, one forward for each step"
    assert [worker.restarts for worker in stats.workers] == [0] * ranks
