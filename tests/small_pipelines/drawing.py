"""A stock pipeline that draws from torch's global generator, each time in another place.

Each builder can be a `model`: `model="small_pipelines.drawing:in_decode"`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from small_pipelines.images import stable_diffusion_parts

REQUEST: dict[str, Any] = {
    "prompt": "a red seven",
    "height": 32,
    "width": 32,
    "num_inference_steps": 3,
    "guidance_scale": 5.0,
    "output_type": "np",
}
Noise = Callable[[torch.Tensor], torch.Tensor]


def add_randn(value: torch.Tensor) -> torch.Tensor:
    return value + 0.1 * torch.randn(value.shape, device=value.device)


def _noisy(real: type[Any], name: str, noise: Noise) -> type[Any]:
    """Return a subclass with noise in the first thing that a method returns."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = getattr(real, name)(self, *args, **kwargs)
        if isinstance(result, tuple):
            return (noise(result[0]), *result[1:])
        first = next(iter(result))
        result[first] = noise(result[first])
        return result

    return type(real.__name__, (real,), {name: method})


def build(
    encode: Noise | None = None,
    step: Noise | None = None,
    forward: Noise | None = None,
    decode: Noise | None = None,
) -> Any:
    """Return a pipeline in which some methods put noise into what they return."""
    parts = stable_diffusion_parts()
    pipeline = StableDiffusionPipeline
    if encode is not None:
        pipeline = _noisy(pipeline, "encode_prompt", encode)
    if step is not None:
        parts["scheduler"] = _noisy(DDIMScheduler, "step", step).from_config(parts["scheduler"].config)
    if forward is not None:
        parts["unet"].__class__ = _noisy(UNet2DConditionModel, "forward", forward)
    if decode is not None:
        parts["vae"].__class__ = _noisy(AutoencoderKL, "decode", decode)
    return pipeline(**parts)


def nowhere() -> Any:
    return build()


def in_prompt() -> Any:
    return build(encode=add_randn)


def in_scheduler() -> Any:
    return build(step=add_randn)


def in_denoiser() -> Any:
    return build(forward=add_randn)


def in_dropout() -> Any:
    return build(forward=lambda value: torch.nn.functional.dropout(value, 0.3, training=True))


def in_decode() -> Any:
    return build(decode=add_randn)


def everywhere() -> Any:
    return build(add_randn, add_randn, add_randn, add_randn)


def reseeding() -> Any:
    """Seeds the global generator for what follows, as some prompt enhancers do."""

    def encode(value: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(torch.initial_seed() + 1)
        return add_randn(value)

    return build(encode=encode, step=add_randn, decode=add_randn)


def forking() -> Any:
    """Seeds it for a while only."""

    def encode(value: torch.Tensor) -> torch.Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            value = add_randn(value)
        return add_randn(value)

    return build(encode=encode, step=add_randn)


def repeating() -> Any:
    """Draws the same numbers twice in every step."""

    def step(value: torch.Tensor) -> torch.Tensor:
        state = torch.get_rng_state()
        value = add_randn(value)
        torch.set_rng_state(state)
        return add_randn(value)

    return build(step=step)


def by_name() -> Any:
    """Gives the global generator to what draws."""

    def step(value: torch.Tensor) -> torch.Tensor:
        return value + 0.1 * torch.randn(value.shape, generator=torch.default_generator)

    return build(step=step)


BUILDERS: dict[str, Callable[[], Any]] = {
    builder.__name__: builder
    for builder in (
        nowhere,
        in_prompt,
        in_scheduler,
        in_denoiser,
        in_dropout,
        in_decode,
        everywhere,
        reseeding,
        forking,
        repeating,
        by_name,
    )
}


def noisy_callback(_pipeline: Any, _step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
    """A `callback_on_step_end` that draws."""
    return {"latents": add_randn(values["latents"])}
