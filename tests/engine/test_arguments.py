"""What a request may ask for is checked where it is submitted, before any worker sees it."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.errors import ConfigError, ModelLoadError, RequestError
from omni_core.worker.pipeline.loader import SMALL_MODEL
from small_pipelines import CASES, Case

NAMES = ["stable_diffusion", "stable_diffusion_xl", "stable_diffusion_img2img", "stable_diffusion_controlnet"]


@pytest.fixture(scope="module", params=NAMES)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[DiffusionEngine, Case]]:
    case = CASES[request.param]
    with DiffusionEngine(pipeline=case.build()) as engine:
        yield engine, case


@pytest.mark.parametrize(
    ("fields", "extra_args"),
    [
        ({}, {"strenght": 0.5}),
        ({}, {"num_images_per_promt": 2}),
        ({}, {"scheduler": "euler"}),
        ({}, {"guidance_sclae": 2.0}),
        ({"output_type": "pill"}, {}),
    ],
)
def test_what_the_pipeline_would_swallow_is_refused_at_once(
    served: tuple[DiffusionEngine, Case], fields: dict[str, Any], extra_args: dict[str, Any]
) -> None:
    engine, case = served
    good = OmniDiffusionRequest(**case.fields, extra_args=case.extra_args)
    wrong = OmniDiffusionRequest(**{**case.fields, **fields}, extra_args={**case.extra_args, **extra_args})
    with pytest.raises(RequestError, match=next(iter([*extra_args, "pill"]))):
        engine.submit_all([good, wrong])
    assert engine.stats().waiting == engine.stats().running == 0


@pytest.mark.parametrize(
    ("name", "defaults", "words"),
    [
        ("stable_diffusion", {"strenght": 0.5}, "request_defaults: .*takes no 'strenght'"),
        ("stable_diffusion_img2img", {"height": 32}, "request_defaults: .*takes no 'height'"),
        ("stable_diffusion", {"output_type": "pill"}, "request_defaults: .*Did you mean 'pil'"),
        ("stable_diffusion", {"scheduler": 1}, "request_defaults: .*part of the pipeline"),
        ("stable_diffusion_xl", {"height": 100}, "request_defaults: height = 100 is no multiple of 8"),
    ],
)
def test_defaults_that_the_pipeline_would_swallow_are_refused_at_the_start(
    name: str, defaults: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        DiffusionEngine(OmniDiffusionConfig(request_defaults=defaults), pipeline=CASES[name].build())


def test_defaults_count_where_a_request_is_checked() -> None:
    case = CASES["stable_diffusion_img2img"]
    config = OmniDiffusionConfig(request_defaults={"strength": 0.1, "callback_steps": 1})
    with DiffusionEngine(config, pipeline=case.build()) as engine:
        extra_args = {"image": case.extra_args["image"]}
        with pytest.raises(RequestError, match=r"strength = 0\.1 and num_inference_steps = 9"):
            engine.submit(OmniDiffusionRequest(prompt="x", num_inference_steps=9, extra_args=extra_args))
        request = OmniDiffusionRequest(prompt="x", num_inference_steps=10, extra_args=extra_args)
        assert engine.step([request])[0].raise_for_error().metrics.num_steps == 1


def model_with_defaults(folder: Path, defaults: dict[str, Any]) -> str:
    shutil.copytree(SMALL_MODEL, folder)
    (folder / "request_defaults.json").write_text(json.dumps(defaults))
    return str(folder)


def test_none_takes_a_default_of_the_models_folder_away(tmp_path: Path) -> None:
    model = model_with_defaults(tmp_path / "model", {"num_inference_steps": 7, "guidance_scale": 2.0})
    with DiffusionEngine(OmniDiffusionConfig(model=model, request_defaults={"num_inference_steps": None})) as engine:
        assert engine.pipeline_info is not None
        assert engine.pipeline_info.defaults == {"guidance_scale": 2.0}


@pytest.mark.parametrize(
    ("defaults", "words"),
    [({"num_inference_steps": -1}, "closest valid value is 1"), ({"seed": 3}, "'seed' can have no default")],
)
def test_wrong_defaults_of_the_models_folder_name_the_file(
    tmp_path: Path, defaults: dict[str, Any], words: str
) -> None:
    model = model_with_defaults(tmp_path / "model", defaults)
    with pytest.raises(ModelLoadError, match=f"request_defaults.json is wrong: .*{words}"):
        DiffusionEngine(OmniDiffusionConfig(model=model))


def test_what_a_request_brought_is_freed_when_it_ends(wait_until: Any) -> None:
    """At once, and not when Python next looks for cycles: pictures are large, and cycles are looked for by number."""
    picture = Image.new("RGB", (32, 32))
    brought = weakref.ref(picture)
    with DiffusionEngine(OmniDiffusionConfig(model="omni_core.testing.pipelines:image_to_image")) as engine:
        gc.collect()
        gc.disable()
        try:
            extra = {"image": picture, "strength": 0.9}
            handle = engine.submit(OmniDiffusionRequest(prompt="x", num_inference_steps=2, extra_args=extra))
            assert handle.result(60).finish_reason == "finished"
            del picture, extra, handle
            wait_until(lambda: brought() is None, 10)
        finally:
            gc.enable()
