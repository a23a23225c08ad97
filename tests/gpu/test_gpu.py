"""What can only be seen on an accelerator. Skipped with a reason where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from small_pipelines import CASES, images

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and this machine has none"),
]


@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_3", "wan", "ddpm"])
def test_the_same_as_the_bare_pipeline(name: str) -> None:
    case = CASES[name]
    bare = case.build().to("cuda")
    bare.set_progress_bar_config(disable=True)
    expected = getattr(bare(**case.fields, **case.extra_args, generator=torch.Generator().manual_seed(5)), case.output)
    with DiffusionEngine(OmniDiffusionConfig(device="cuda", dtype="float32"), pipeline=case.build()) as engine:
        [output] = engine.step([OmniDiffusionRequest(**case.fields, extra_args=case.extra_args, seed=5)])
    got = output.raise_for_error().output[case.output]
    assert np.array_equal(np.asarray(got[0]), np.asarray(expected[0]))


def test_auto_is_bfloat16_on_the_accelerator() -> None:
    with DiffusionEngine() as engine:
        assert engine.pipeline_info is not None
        assert engine.pipeline_info.device.startswith("cuda")
        assert engine.pipeline_info.dtype == "bfloat16"
        [output] = engine.step([OmniDiffusionRequest(prompt="a red seven", seed=1)])
        assert output.raise_for_error().images


@pytest.mark.parametrize("level", [1, 2])
def test_sleep_frees_the_accelerator_and_requests_go_on(level: int) -> None:
    config = OmniDiffusionConfig(model="small_pipelines.images:heavy", device="cuda")
    with DiffusionEngine(config) as engine:
        request = {"num_inference_steps": 50, "seed": 3}
        [before] = engine.step([OmniDiffusionRequest(**request)])
        handle = engine.submit(OmniDiffusionRequest(**request))
        next(event for event in handle.events(timeout=30) if event.kind == "started")
        awake = torch.cuda.memory_allocated()
        engine.sleep(level=level)
        assert torch.cuda.memory_allocated() < awake - 150 * 2**20
        engine.wake_up()
        assert handle.result(60).raise_for_error().images[0].tobytes() == before.images[0].tobytes()


def test_the_programs_own_random_numbers_are_left_alone() -> None:
    torch.cuda.manual_seed(7)
    state = torch.cuda.get_rng_state()
    with DiffusionEngine(OmniDiffusionConfig(device="cuda"), pipeline=images.ddpm()) as engine:
        engine.step([OmniDiffusionRequest(num_inference_steps=2)])
    assert torch.equal(torch.cuda.get_rng_state(), state)


@pytest.mark.parametrize("offload", ["model", "group"])
def test_offload(offload: str) -> None:
    pytest.importorskip("accelerate", reason="offload needs the extra omni-core[offload]")
    config = OmniDiffusionConfig(device="cuda", offload=offload)
    case = CASES["stable_diffusion_3"]
    with DiffusionEngine(config, pipeline=case.build()) as engine:
        outputs = engine.step([OmniDiffusionRequest(**case.fields, seed=seed) for seed in (1, 1)])
    first, second = (np.asarray(output.raise_for_error().images[0]) for output in outputs)
    assert np.array_equal(first, second)
