"""Requests that run together give what they give alone, for every kind of pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from small_pipelines import CASES, Case
from small_pipelines.by_day import one_of_each_family

# Perturbed, self- and cross-frame attention put processors into the model; a projection takes two texts to one picture.
REFUSED = {name for name in CASES if name.endswith("_pag")} | {"stable_diffusion_sag", "text_to_video_zero", "unclip"}


def as_array(value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, list):
        return np.stack([as_array(item) for item in value])
    if isinstance(value, Image.Image):
        return np.asarray(value).astype(np.float32) / 255
    if isinstance(value, torch.Tensor):
        return value.float().numpy()
    return np.asarray(value)


def requests_of(case: Case, *settings: tuple[int, int]) -> list[dict[str, Any]]:
    """The case's request with other seeds and numbers of steps, and an output that is not rounded to 8 bits."""
    fields, extra_args = dict(case.fields), dict(case.extra_args)
    if case.exact_output_type is not None:
        fields["output_type"] = case.exact_output_type
    requests = []
    for seed, steps in settings:
        changes = {case.steps_argument: steps}
        if case.steps_argument in OmniDiffusionRequest.model_fields:
            requests.append({**fields, **changes, "seed": seed, "extra_args": extra_args})
        else:
            requests.append({**fields, "seed": seed, "extra_args": {**extra_args, **changes}})
    return requests


@pytest.mark.parametrize("name", one_of_each_family())
def test_three_together_give_what_each_gives_alone(name: str) -> None:
    case = CASES[name]
    requests = requests_of(case, (1, 4), (2, 6), (3, 4))
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
        assert np.isfinite(got).all()
        assert np.abs(got - expected).max() <= 1e-4
    assert stats is not None
    # Those that make a denoiser of their own for each request have nothing to stack.
    makes_model = name.startswith("rearranging_") and ("_model" in name or "_of_itself" in name)
    assert stats.mean_rows > 1 or stats.refused or makes_model
    assert bool(stats.refused) == (name in REFUSED)
    assert not np.array_equal(alone[0], alone[2])


@pytest.mark.parametrize("name", ["stable_diffusion_xl", "stable_diffusion_xl_img2img"])
def test_an_autoencoder_that_pipelines_cast_for_a_call(name: str) -> None:
    # In float16 these cast the autoencoder that all share to float32, run it, and cast it back.
    case = CASES[name]
    requests = requests_of(case, *((seed, 4) for seed in range(6)))
    with DiffusionEngine(OmniDiffusionConfig(stacking="off", dtype="float16"), pipeline=case.build()) as engine:
        alone = [engine.step([OmniDiffusionRequest(**request)])[0].raise_for_error().images for request in requests]
    config = OmniDiffusionConfig(stacking="off", dtype="float16")
    with DiffusionEngine(config, pipeline=case.build()) as engine:
        outputs = engine.step([OmniDiffusionRequest(**request) for request in requests])
    for output, expected in zip(outputs, alone, strict=True):
        assert np.array_equal(as_array(output.raise_for_error().images), as_array(expected))


def test_what_one_request_puts_into_the_model_is_not_there_for_others() -> None:
    case = CASES["stable_diffusion_pag"]
    requests = requests_of(case, (1, 3), (2, 6), (3, 4), (4, 6))
    # Perturbed attention is put into the model at the first call and taken out at the last, by every other request.
    for index, request in enumerate(requests):
        request["extra_args"] = {"pag_scale": 3.0 if index % 2 == 0 else 0.0}
    alone = []
    for request in requests:
        with DiffusionEngine(pipeline=case.build()) as engine:
            [output] = engine.step([OmniDiffusionRequest(**request)])
            alone.append(as_array(output.raise_for_error().output[case.output]))
    pipeline = case.build()
    processors = pipeline.unet.attn_processors
    with DiffusionEngine(pipeline=pipeline) as engine:
        for _ in range(2):
            outputs = engine.step([OmniDiffusionRequest(**request) for request in requests])
            for output, expected in zip(outputs, alone, strict=True):
                assert np.abs(as_array(output.raise_for_error().output[case.output]) - expected).max() <= 1e-4
        stats = engine.stats().stacking
    assert stats is not None
    assert stats.verified > 0, "those without perturbed attention are stacked all the same"
    assert pipeline.unet.attn_processors == processors
