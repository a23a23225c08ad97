"""Only an output that is made of NaN fails its request; what numpy meets elsewhere is nobody's business."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.worker import model_runner
from omni_core.worker.task.nan_watch import NanWatch
from small_pipelines import CASES

CASE = CASES["stable_diffusion"]
STEPS = 3
Callback = Callable[..., dict[str, Any]]


@pytest.fixture(params=["beside", "in the task"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[DiffusionEngine]:
    monkeypatch.setattr(model_runner, "has_room_for_side_thread", lambda _device: request.param == "beside")
    with DiffusionEngine(OmniDiffusionConfig(stacking="off"), pipeline=CASE.build()) as engine:
        yield engine


def request_with(seed: int, output_type: str = "pil", **extra_args: Any) -> OmniDiffusionRequest:
    return OmniDiffusionRequest(**CASE.fields, seed=seed, output_type=output_type, extra_args=extra_args)


def right(seed: int, output_type: str = "pil", **more: Any) -> Any:
    pipeline = CASE.build()
    pipeline.set_progress_bar_config(disable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pipeline(
            **CASE.fields, output_type=output_type, generator=torch.Generator().manual_seed(seed), **more
        ).images


def invalid_cast(*_: Any) -> dict[str, Any]:
    np.array([np.nan, -5.0]).astype(np.uint8)
    return {}


def invalid_division(*_: Any) -> dict[str, Any]:
    np.zeros(2) / np.zeros(2)
    return {}


def decodes_nan(pipeline: Any, _step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
    """A preview of a callback's own, of latents that are none, before the last step."""
    if _step < STEPS - 1:
        decoded = pipeline.vae.decode(values["latents"] * float("nan"), return_dict=False)[0]
        (decoded.numpy() * 255).astype(np.uint8)
    return {}


def under_its_own_handling(*_: Any) -> dict[str, Any]:
    with np.errstate(invalid="raise"):
        with pytest.raises(FloatingPointError, match="invalid value"):
            np.zeros(2) / np.zeros(2)
    with np.errstate(invalid="ignore"):
        np.zeros(2) / np.zeros(2)
    return {}


def hears_a_warning(*_: Any) -> dict[str, Any]:
    with pytest.warns(RuntimeWarning, match="invalid value"):
        np.zeros(2) / np.zeros(2)
    return {}


def warnings_as_errors(*_: Any) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="invalid value"):
            np.zeros(2) / np.zeros(2)
    return {}


HARMLESS: list[Callback] = [
    invalid_cast,
    invalid_division,
    decodes_nan,
    under_its_own_handling,
    hears_a_warning,
    warnings_as_errors,
]


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("output_type", ["pil", "np", "latent"])
@pytest.mark.parametrize("callback", HARMLESS)
def test_a_callback_may_compute_what_it_likes(engine: DiffusionEngine, callback: Callback, output_type: str) -> None:
    outputs = engine.step([request_with(seed, output_type, callback_on_step_end=callback) for seed in (1, 2)])
    for seed, output in zip((1, 2), outputs, strict=True):
        assert np.array_equal(np.asarray(output.raise_for_error().images), np.asarray(right(seed, output_type)))


def nan_at(step: int) -> Callback:
    def callback(_pipeline: Any, now: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        return {"latents": values["latents"] * float("nan")} if now == step else {}

    return callback


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
@pytest.mark.parametrize("step", range(STEPS))
def test_an_output_that_is_made_of_nan_fails(engine: DiffusionEngine, step: int, output_type: str) -> None:
    good, bad = engine.step(
        [request_with(1, output_type), request_with(2, output_type, callback_on_step_end=nan_at(step))]
    )
    assert "not numbers" in str(bad.error)
    assert good.finish_reason == "finished"


def test_numpys_settings_stay_with_their_request(engine: DiffusionEngine) -> None:
    seen: list[tuple[str, str]] = []

    def sets(*_: Any) -> dict[str, Any]:
        seen.append(("sets", np.geterr()["over"]))
        np.seterr(over="raise")
        return {}

    def looks(*_: Any) -> dict[str, Any]:
        seen.append(("looks", np.geterr()["over"]))
        return {}

    before = np.geterr()
    engine.step([request_with(1, callback_on_step_end=sets), request_with(2, callback_on_step_end=looks)])
    engine.step([request_with(3, callback_on_step_end=looks)])
    assert ("sets", "raise") in seen  # its own from its second step on
    assert {over for who, over in seen if who == "looks"} == {before["over"]}
    assert np.geterr() == before


def test_an_autoencoder_is_under_the_settings_of_its_request(engine: DiffusionEngine) -> None:
    seen = []
    decode = engine.collective_rpc(_keep_pipeline, unique_reply_rank=0).vae.decode

    def noticing(*args: Any, **kwargs: Any) -> Any:
        seen.append(np.geterr()["over"])
        return decode(*args, **kwargs)

    def sets(*_: Any) -> dict[str, Any]:
        np.seterr(over="print")
        return {}

    pipeline = engine.collective_rpc(_keep_pipeline, unique_reply_rank=0)
    pipeline.vae.decode = noticing
    engine.step([request_with(1, callback_on_step_end=sets), request_with(2)])
    assert sorted(seen) == ["print", "warn"]


def _keep_pipeline(worker: Any) -> Any:
    return worker.pipeline


class DecodesAgain:
    """Decodes in half precision first, sees that this is NaN, and decodes again: what some front ends do."""

    def __init__(self, gives_up: bool) -> None:
        parts = CASE.build()
        self.unet, self.vae, self.gives_up = parts.unet, parts.vae, gives_up

    @torch.no_grad()
    def __call__(self, generator: Any = None) -> Any:
        latents = torch.randn(1, 4, 16, 16, generator=generator)
        latents = latents - self.unet(latents, 5, torch.zeros(1, 7, self.unet.config.cross_attention_dim)).sample
        picture = self.vae.decode(latents * float("nan"), return_dict=False)[0]
        if not self.gives_up:
            assert bool(picture.isnan().any())
            picture = self.vae.decode(latents, return_dict=False)[0]
        pixels = (picture / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).numpy()
        return {"images": [Image.fromarray((pixels * 255).round().astype(np.uint8))]}


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("gives_up", [True, False])
def test_a_pipeline_that_decodes_again(gives_up: bool) -> None:
    with DiffusionEngine(pipeline=DecodesAgain(gives_up)) as engine:
        [output] = engine.step([OmniDiffusionRequest(seed=1)])
    if gives_up:
        assert "not numbers" in str(output.error)
    else:
        expected = DecodesAgain(False)(torch.Generator().manual_seed(1))["images"][0]
        assert np.array_equal(np.asarray(output.raise_for_error().images[0]), np.asarray(expected))


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("name", ["ddpm", "wan", "stable_audio"])
@pytest.mark.parametrize("output_type", ["pil", "np"])
def test_pixels_video_and_sound(name: str, output_type: str) -> None:
    """Models without an autoencoder, and those that give something else than pictures."""
    if name == "stable_audio" and output_type == "pil":
        output_type = "pt"
    case = CASES[name]
    pipeline = case.build()
    model = pipeline.unet if name == "ddpm" else pipeline.transformer
    fields = {**case.fields, "output_type": output_type}
    with DiffusionEngine(pipeline=pipeline) as engine:
        [good] = engine.step([OmniDiffusionRequest(**fields, extra_args=case.extra_args, seed=1)])
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))
        [bad] = engine.step([OmniDiffusionRequest(**fields, extra_args=case.extra_args, seed=1)])
    assert good.raise_for_error().finish_reason == "finished"
    assert "not numbers" in str(bad.error)


@pytest.mark.parametrize("mode", ["print", "log", "call", "warn", "ignore"])
def test_what_numpy_was_told_to_do_is_done(mode: str, capfd: pytest.CaptureFixture[str]) -> None:
    """By bare numpy and under the watch alike; texts may differ in the name of the function."""

    class Log:
        def __init__(self) -> None:
            self.heard = 0

        def write(self, text: str) -> None:
            self.heard += 1

        def __call__(self, kind: str, flag: int) -> None:
            self.heard += 1

    def happens(watch: Any) -> tuple[int, int, int]:
        log = Log()
        with np.errstate(invalid=mode, call=log), watch, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            np.array([np.nan]).astype(int)
            np.sqrt(np.array([-1.0]))
        return log.heard, len(warned), capfd.readouterr().err.count("invalid value")

    assert happens(NanWatch().watching()) == happens(contextlib.nullcontext())
