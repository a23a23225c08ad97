"""What is known of the arguments of diffusers' own pipelines, held against all of them and against what they do."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DDPMPipeline,
    KandinskyV22InpaintCombinedPipeline,
    KandinskyV22InpaintPipeline,
    WuerstchenCombinedPipeline,
    WuerstchenDecoderPipeline,
)

from omni_core import OmniDiffusionRequest
from omni_core.errors import RequestError, closest
from omni_core.pipeline_info import PipelineInfo, StrengthRule
from omni_core.request import FIELD_OF_ARGUMENT
from omni_core.worker.pipeline.loader import describe
from small_pipelines import CASES
from small_pipelines.case import picture

PARTS = {
    KandinskyV22InpaintCombinedPipeline: KandinskyV22InpaintPipeline,
    WuerstchenCombinedPipeline: WuerstchenDecoderPipeline,
}
POPPED = re.compile(r"""\bkwargs\.(?:pop|get)\(\s*["'](\w+)["']""")


def vars_of(kind: type) -> dict[str, Any]:
    return {name: value for part in reversed(kind.__mro__) for name, value in vars(part).items()}


def refusal(info: PipelineInfo, **fields: Any) -> str | None:
    """Why a request is refused, None if it is not."""
    try:
        info.arguments(OmniDiffusionRequest(**fields))
    except RequestError as error:
        return str(error)
    return None


def stock_classes() -> dict[str, type]:
    found = {name: getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Pipeline")}
    return {
        name: kind
        for name, kind in found.items()
        if isinstance(kind, type) and inspect.isfunction(vars_of(kind).get("__call__")) and name != "ModularPipeline"
    }


def without_weights(kind: type) -> Any:
    """The pipeline as far as its arguments go."""
    if issubclass(kind, diffusers.ModularPipeline):
        return kind()
    pipeline = object.__new__(kind)
    if kind in PARTS:
        object.__setattr__(pipeline, "decoder_pipe", object.__new__(PARTS[kind]))
    return pipeline


def described(pipeline: Any) -> PipelineInfo:
    return describe(pipeline, "x", {}, torch.device("cpu"))


def names_of(kind: type, pipeline: Any) -> set[str]:
    """The keywords that a class takes, read off in another way than omni does."""
    if issubclass(kind, diffusers.ModularPipeline):
        return {one.name for one in pipeline.blocks.inputs if one.name}
    function = inspect.unwrap(kind.__call__)
    parameters = inspect.signature(function).parameters.values()
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        named |= set(POPPED.findall(inspect.getsource(function)))
    return named


def misspelt(name: str) -> str:
    middle = len(name) // 2
    return f"{name[:middle]}{name[middle + 1 :]}" if len(name) > 3 else f"{name}{name[-1]}"


def test_every_stock_pipeline_refuses_what_it_does_not_take_and_takes_what_it_does() -> None:
    classes = stock_classes()
    assert len(classes) > 200
    tried = 0
    for name, kind in classes.items():
        pipeline = without_weights(kind)
        info = described(pipeline)
        assert not info.accepts_any, name
        names = names_of(kind, pipeline)
        settable = (
            names - {"return_dict", *FIELD_OF_ARGUMENT} - set(OmniDiffusionRequest.model_fields) - {*info.ignored}
        )
        for argument in settable:
            assert info._problem(argument, None) is None, (name, argument)
            wrong = misspelt(argument)
            if wrong in names:
                continue
            tried += 1
            with pytest.raises(RequestError, match=f"takes no '{wrong}'") as caught:
                info.arguments(OmniDiffusionRequest(extra_args={wrong: 1}))
            assert f"Did you mean {closest(wrong, info._settable)!r}?" in str(caught.value)
    assert tried > 3000


@pytest.mark.parametrize("name", sorted(name for name in CASES if not name.startswith("rearranging_")))  # not stock
def test_the_requests_of_all_families_fit(name: str) -> None:
    case = CASES[name]
    info = described(case.build())
    info.arguments(OmniDiffusionRequest(**case.fields, extra_args=case.extra_args))
    assert not info.accepts_any
    if "output_type" in info.parameters:
        assert {"np"} <= {*info.output_types}
        with pytest.raises(RequestError, match="knows no output_type 'pill'"):
            info.arguments(OmniDiffusionRequest(**{**case.fields, "output_type": "pill"}, extra_args=case.extra_args))


@pytest.mark.parametrize(
    ("case", "fields", "words"),
    [
        ("stable_diffusion_img2img", {"extra_args": {"strenght": 1}}, "takes no 'strenght'. Did you mean 'strength'?"),
        ("stable_diffusion_img2img", {"height": 32, "width": 32}, "takes no 'height'"),
        ("stable_diffusion", {"extra_args": {"num_images_per_promt": 2}}, "takes no 'num_images_per_promt'"),
        ("stable_diffusion", {"extra_args": {"scheduler": None}}, "'scheduler', which is a part of the pipeline"),
        ("stable_diffusion", {"extra_args": {"unet": None}}, "'unet', which is a part of the pipeline"),
        ("stable_diffusion", {"output_type": "pill"}, "Did you mean 'pil'? It knows: latent, np, pil, pt"),
        ("stable_diffusion", {"output_type": "numpy"}, "Did you mean 'np'?"),
        ("stable_diffusion", {"output_type": "PIL"}, "Did you mean 'pil'?"),
        ("stable_audio", {"output_type": "pil"}, "It knows: latent, np, pt"),
        ("ddpm", {"output_type": "latent"}, "It knows: np, pil, pt"),
        ("stable_diffusion", {"height": 32}, "no use of height without width"),
        ("stable_diffusion", {"width": 32}, "no use of width without height"),
        ("stable_diffusion_xl", {"height": 100, "width": 32}, "height = 100 is no multiple of 8.* are 96 and 104"),
        ("stable_diffusion_xl", {"height": 32, "width": 1}, "width = 1 is no multiple of 8.* are 8"),
        ("ltx", {"height": 33, "width": 32}, "height = 33 is no multiple of 32.* are 32 and 64"),
    ],
)  # fmt: skip
def test_messages_name_what_is_valid(case: str, fields: dict[str, Any], words: str) -> None:
    info = described(CASES[case].build())
    more = {"prompt": "x"} if "prompt" in info.parameters else {}
    with pytest.raises(RequestError, match=re.compile(re.escape(words).replace(r"\.\*", ".*"))):
        info.arguments(OmniDiffusionRequest(**more, **fields))


@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_img2img", "stable_diffusion_xl"])
def test_deprecated_names_pass(name: str) -> None:
    info = described(CASES[name].build())
    assert {"callback", "callback_steps"} <= {*info.parameters}
    given = {"callback": print, "callback_steps": 1, "image": picture()}
    given = {key: value for key, value in given.items() if key in info.parameters}
    assert info.arguments(OmniDiffusionRequest(prompt="x", extra_args=given))["callback"] is print


# --- a pipeline of somebody's own ---------------------------------------------------------------------------------


class Inherited(DDPMPipeline):
    pass


class Overridden(DDPMPipeline):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("mine", None)
        return super().__call__(*args, **kwargs)


class Own:
    def __call__(self, prompt: str, unread: int = 0, output_type: str = "x", **kwargs: Any) -> None:
        assert output_type == "y"


def test_ones_own_pipeline_may_take_anything() -> None:
    info = described(Own())
    arguments = {"whatever": 1, "unread": 2}
    assert info.arguments(OmniDiffusionRequest(prompt="x", output_type="pill", extra_args=arguments))["whatever"] == 1
    assert (info.ignored, info.output_types, info.size_multiple) == ((), (), 1)
    parts = CASES["ddpm"].build().components
    assert described(Overridden(**parts)).accepts_any
    inherited = described(Inherited(**parts))
    assert not inherited.accepts_any
    assert inherited.output_types == ("np", "pil", "pt")


def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def with_an_option(self: Any, *args: Any, whatever: int = 0, **kwargs: Any) -> Any:
        return call(self, *args, **kwargs)

    return with_an_option


@pytest.mark.parametrize("make_call", [lambda call: Own.__call__, wrapped, lambda call: torch.no_grad()(wrapped(call))])
def test_a_stock_class_with_a_call_of_somebody_elses_may_take_anything(
    make_call: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = CASES["stable_diffusion"].build()
    monkeypatch.setattr(type(pipeline), "__call__", make_call(type(pipeline).__call__))
    assert described(pipeline).accepts_any
    assert described(pipeline).output_types == ()


# --- held against what the pipelines do ---------------------------------------------------------------------------


def run(pipeline: Any, case: Any, **changes: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    arguments = {**case.fields, **case.extra_args, **changes}
    return pipeline(**arguments, generator=torch.Generator().manual_seed(1))


STARTED_FROM_A_PICTURE = [
    "stable_diffusion_img2img",
    "stable_diffusion_inpaint",
    "stable_diffusion_xl_img2img",
    "stable_diffusion_3_img2img",
    "flux_img2img",
    "stable_diffusion_controlnet_img2img",
]


@pytest.mark.parametrize("name", STARTED_FROM_A_PICTURE)
@pytest.mark.parametrize(
    ("steps", "strength"), [(3, 0.34), (3, 0.3), (4, 0.2), (1, 0.9), (1, 1.0), (49, 1 / 49), (2, 0.0)]
)
def test_a_request_is_refused_if_and_only_if_the_pipeline_could_take_no_step(
    name: str, steps: int, strength: float
) -> None:
    case = CASES[name]
    pipeline = case.build()
    info = described(pipeline)
    fields = {**case.fields, "num_inference_steps": steps}
    refused = refusal(info, **fields, extra_args={**case.extra_args, "strength": strength})
    if refused is None:
        assert run(pipeline, case, num_inference_steps=steps, strength=strength)
        return
    assert f"strength = {strength} and num_inference_steps = {steps}" in refused
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        run(pipeline, case, num_inference_steps=steps, strength=strength)


def test_strength_counts_together_with_the_defaults_of_the_pipeline() -> None:
    info = described(CASES["stable_diffusion_img2img"].build())
    assert info.strength_rule == StrengthRule(True, ("timesteps", "sigmas"))

    def refused(steps: int | None = None, **extra_args: Any) -> bool:
        said = refusal(info, prompt="x", num_inference_steps=steps, extra_args={"image": 1, **extra_args})
        assert said is None or "or more, or a strength of" in said
        return said is not None

    assert refused(strength=0.01)  # of 50 steps
    assert not refused(strength=0.02)
    assert refused(steps=1)  # of strength 0.8
    assert not refused(steps=2)
    assert not refused(steps=1, timesteps=[1])
    assert not refused(steps=1, strength="none")  # the pipeline says that


@pytest.mark.parametrize("strength", [0.013, 0.02, 0.3, 1 / 3, 0.7])
@pytest.mark.parametrize("steps", [1, 3, 49, 50])
def test_what_is_proposed_instead_is_enough(steps: int, strength: float) -> None:
    info = PipelineInfo("P", "m", ("num_inference_steps", "strength"), strength_rule=StrengthRule(True))

    def ask(steps: int, strength: float) -> str | None:
        return refusal(info, num_inference_steps=steps, extra_args={"strength": strength})

    said = ask(steps, strength)
    assert (said is None) == (int(steps * strength) >= 1)
    if said is not None:
        proposed = re.search(r"num_inference_steps=(\d+) or more, or a strength of ([\d.]+) or more", said)
        assert proposed is not None
        assert ask(int(proposed[1]), strength) is None
        assert ask(steps, float(proposed[2])) is None


@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_xl", "ltx", "wan", "lumina2", "cogvideox"])
def test_a_size_is_refused_if_and_only_if_the_pipeline_refuses_it(name: str) -> None:
    case = CASES[name]
    pipeline = case.build()
    info = described(pipeline)
    assert info.size_multiple > 1 or name == "stable_diffusion"
    for size in (32, 33, 36, 40, 64):
        fields = {**case.fields, "height": size, "width": size}
        refused = refusal(info, **fields, extra_args=case.extra_args)
        if refused is None:
            pipeline.check_inputs(**check_arguments(pipeline, fields))
        else:
            with pytest.raises(ValueError, match="divisible"):
                pipeline.check_inputs(**check_arguments(pipeline, fields))


def check_arguments(pipeline: Any, fields: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(pipeline.check_inputs).parameters.values()
    known: dict[str, Any] = {p.name: None if p.default is p.empty else p.default for p in parameters}
    known.update({name: value for name, value in fields.items() if name in known})
    if "negative_prompt" in known and "do_classifier_free_guidance" in known:
        known["do_classifier_free_guidance"] = False
    return known


@pytest.mark.parametrize("name", ["ddpm", "dit", "stable_diffusion", "stable_diffusion_adapter", "stable_audio", "ltx"])
def test_the_output_types_that_are_known_are_made(name: str) -> None:
    case = CASES[name]
    made = {kind: run(case.build(), case, output_type=kind)[0] for kind in described(case.build()).output_types}
    assert {"np", "pt"} <= {*made} or "pil" in made
    assert len(made) > 1


MAKERS: list[Callable[[], Any]] = [CASES[name].build for name in ("stable_diffusion", "kandinsky_combined")]


@pytest.mark.parametrize("make", MAKERS)
def test_without_its_source_a_pipeline_has_the_last_word(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from omni_core.worker.pipeline import function_source

    def no_source(function: Any) -> str:
        raise OSError("could not get source code")

    function_source._parsed.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(function_source.inspect, "getsource", no_source)
        info = described(make())
    function_source._parsed.cache_clear()
    has_kwargs = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(type(make()).__call__).parameters.values())
    assert info.accepts_any == has_kwargs
    assert (info.output_types, info.size_multiple, info.strength_rule, info.ignored) == ((), 1, None, ())
