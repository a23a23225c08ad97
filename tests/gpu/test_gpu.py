"""What can only be seen on an accelerator. Skipped with a reason where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.worker.task.generators import TaskRandom
from omni_core.worker.task.random_draws import drawing_from, install_draws
from small_pipelines import CASES, drawing, images

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


@pytest.mark.parametrize("place", ["in_decode", "everywhere", "reseeding"])
def test_draws_from_the_generator_of_the_gpu(place: str) -> None:
    bare = drawing.BUILDERS[place]().to("cuda")
    bare.set_progress_bar_config(disable=True)
    torch.manual_seed(5)
    expected = bare(**drawing.REQUEST, generator=torch.Generator().manual_seed(5)).images
    pipeline = drawing.BUILDERS[place]()
    torch.cuda.manual_seed(7)
    state = torch.cuda.get_rng_state()
    with DiffusionEngine(OmniDiffusionConfig(device="cuda"), pipeline=pipeline) as engine:
        [output] = engine.step([OmniDiffusionRequest(**drawing.REQUEST, seed=5)])
    assert np.abs(output.raise_for_error().images - expected).max() < 1e-3
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_dropout_and_the_functions_of_torch_cuda() -> None:
    def draw() -> torch.Tensor:
        value = torch.ones(64, device="cuda", requires_grad=True)
        first = torch.nn.functional.dropout(value, 0.5, training=True)
        state = torch.cuda.get_rng_state()
        second = torch.rand(64, device="cuda")
        torch.cuda.set_rng_state(state)
        third = torch.rand(64, device="cuda")
        torch.cuda.manual_seed_all(torch.cuda.initial_seed() + 1)
        return torch.stack([first, second, third, torch.randn(64, device="cuda")]).detach()

    install_draws()
    torch.manual_seed(5)
    expected = [draw(), draw()]
    torch.cuda.manual_seed(7)
    state = torch.cuda.get_rng_state()
    with drawing_from(TaskRandom(5)):
        found = [draw(), draw()]
    assert all(map(torch.equal, found, expected))
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
