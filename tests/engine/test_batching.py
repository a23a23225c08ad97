"""Requests that run together give what they give alone, for every kind of pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from small_pipelines import CASES


def as_array(value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, list):
        return np.stack([as_array(item) for item in value])
    if isinstance(value, Image.Image):
        return np.asarray(value).astype(np.float32) / 255
    if isinstance(value, torch.Tensor):
        return value.float().numpy()
    return np.asarray(value)


@pytest.mark.parametrize("name", sorted(CASES))
def test_three_together_give_what_each_gives_alone(name: str) -> None:
    case = CASES[name]
    fields = {"output_type": "np", **case.fields} if name != "dance_diffusion" else case.fields
    requests = [
        {**fields, "extra_args": case.extra_args, "seed": seed, "num_inference_steps": steps}
        for seed, steps in ((1, 4), (2, 6), (3, 4))
    ]
    alone = []
    with DiffusionEngine(OmniDiffusionConfig(stacking="off"), pipeline=case.build()) as engine:
        for request in requests:
            [output] = engine.step([OmniDiffusionRequest(**request)])
            alone.append(as_array(output.raise_for_error().output[case.output]))
    with DiffusionEngine(pipeline=case.build()) as engine:
        outputs = engine.step([OmniDiffusionRequest(**request) for request in requests])
        stats = engine.stats().stacking
    for output, expected in zip(outputs, alone, strict=True):
        got = as_array(output.raise_for_error().output[case.output])
        assert np.abs(got - expected).max() <= 1e-4
    assert stats is not None
    assert stats.mean_rows > 1 or stats.refused
    assert not np.array_equal(alone[0], alone[2])
