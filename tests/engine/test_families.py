"""Stock pipelines of many families run through the engine and give what they give by themselves, to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from small_pipelines import CASES, Case
from small_pipelines.by_day import one_of_each_family


def bare(pipeline: Any, case: Case, seed: int, **more: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    arguments = {**case.fields, **case.extra_args, **more}
    torch.manual_seed(seed)  # some draw from the global generator too, of which a request has one of its own
    return getattr(pipeline(**arguments, generator=torch.Generator().manual_seed(seed)), case.output)


def assert_same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, list):
        assert len(left) == len(right) > 0
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, Image.Image):
        assert_same(np.asarray(left), np.asarray(right))
    else:
        assert left.shape == right.shape
        assert np.array_equal(np.asarray(left), np.asarray(right))


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def test_there_are_many_kinds_of_pipelines() -> None:
    assert len({type(case.build()) for case in CASES.values()}) >= 60
    assert len({case.family for case in CASES.values()}) >= 30


@pytest.mark.parametrize("case", one_of_each_family(), indirect=True)
def test_the_same_as_the_bare_pipeline(case: Case) -> None:
    expected = [bare(case.build(), case, seed) for seed in (5, 6)]
    with DiffusionEngine(pipeline=case.build()) as engine:
        # One after the other: a row computed in company differs in the last bits.
        outputs = [
            engine.step([OmniDiffusionRequest(**case.fields, extra_args=case.extra_args, seed=seed)])[0]
            for seed in (5, 6)
        ]
    for output, wanted in zip(outputs, expected, strict=True):
        assert output.raise_for_error().finish_reason == "finished"
        assert_same(output.output[case.output], wanted)
    # The two seeds must matter, or the comparison above would prove nothing.
    first, second = (np.asarray(output.output[case.output][0]) for output in outputs)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("case", one_of_each_family(), indirect=True)
def test_progress_counts_every_step(case: Case) -> None:
    with DiffusionEngine(pipeline=case.build()) as engine:
        handle = engine.submit(OmniDiffusionRequest(**case.fields, extra_args=case.extra_args, seed=1))
        events = list(handle.events(timeout=60))
    assert [event.kind for event in events if event.kind != "step"] == ["queued", "started", "finished"]
    steps = [(event.step, event.num_steps) for event in events if event.kind == "step"]
    total = case.steps
    assert [step for step, _ in steps if step > 0] == list(range(1, total + 1))
    assert steps[-1] == (total, total)
    if case.is_total_known:
        assert {num_steps for step, num_steps in steps if step > 0} == {total}
    assert events[-1].output is not None
    assert events[-1].output.metrics.num_steps == total


@pytest.mark.parametrize("case", one_of_each_family(), indirect=True)
def test_the_engine_leaves_the_pipeline_as_it_was(case: Case) -> None:
    pipeline = case.build()
    before = {name: id(value) for name, value in vars(pipeline).items()}
    expected = bare(case.build(), case, 7)
    with DiffusionEngine(pipeline=pipeline) as engine:
        engine.step([OmniDiffusionRequest(**case.fields, extra_args=case.extra_args, seed=3)])
    assert {name: id(value) for name, value in vars(pipeline).items()} == before
    assert_same(bare(pipeline, case, 7), expected)


@pytest.mark.parametrize("name", ["stable_diffusion", "stable_audio", "wan", "ddpm"])
def test_several_outputs_from_one_request(name: str) -> None:
    case = CASES[name]
    argument = {"ddpm": "batch_size", "wan": "num_videos_per_prompt", "stable_audio": "num_waveforms_per_prompt"}
    expected = bare(case.build(), case, 5, **{argument.get(name, "num_images_per_prompt"): 2})
    with DiffusionEngine(pipeline=case.build()) as engine:
        [output] = engine.step(
            [OmniDiffusionRequest(**case.fields, extra_args=case.extra_args, seed=5, num_outputs_per_prompt=2)]
        )
    assert len(output.raise_for_error().output[case.output]) == 2
    assert_same(output.output[case.output], expected)


def test_a_pipeline_without_several_outputs_says_so() -> None:
    case = CASES["dit"]
    with DiffusionEngine(pipeline=case.build()) as engine:
        with pytest.raises(Exception, match="submit 3 requests instead"):
            engine.submit(OmniDiffusionRequest(extra_args={"class_labels": [1]}, num_outputs_per_prompt=3))


def test_a_model_by_factory_and_by_folder(tmp_path: Any) -> None:
    case = CASES["stable_diffusion"]
    expected = bare(case.build(), case, 5)
    case.build().save_pretrained(tmp_path / "model")
    for model in ("small_pipelines.images:stable_diffusion", str(tmp_path / "model")):
        with DiffusionEngine(OmniDiffusionConfig(model=model)) as engine:
            [output] = engine.step([OmniDiffusionRequest(**case.fields, seed=5)])
            assert_same(output.raise_for_error().images, expected)


def test_a_pipeline_that_draws_from_the_global_generator() -> None:
    class Careless:
        """Neither a generator nor a progress bar, and no diffusers class."""

        def __init__(self) -> None:
            torch.manual_seed(0)
            self.model = torch.nn.Linear(4, 4)

        def __call__(self, num_inference_steps: int = 3) -> dict[str, Any]:
            value = torch.randn(2, 4)
            for _ in range(num_inference_steps):
                value = self.model(value) + 0.1 * torch.randn(2, 4)
            return {"values": value}

    torch.manual_seed(11)
    pipeline = Careless()
    torch.manual_seed(11)
    expected = pipeline()["values"].detach()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    with DiffusionEngine(pipeline=pipeline) as engine:
        [output] = engine.step([OmniDiffusionRequest(seed=11)])
    assert torch.equal(output.raise_for_error().output["values"], expected)
    assert torch.equal(torch.get_rng_state(), state), "the program's own generator was disturbed"
