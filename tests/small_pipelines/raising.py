"""A pipeline in which one request can be made to raise anything, anywhere."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import greenlet
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

from small_pipelines.images import stable_diffusion_parts


class Odd(BaseException):
    """Neither an `Exception` nor one that Python knows."""


class Speechless(Exception):
    def __str__(self) -> str:
        raise SystemExit(4)


def _own_cause() -> BaseException:
    error = ValueError("its own cause")
    error.__cause__ = error
    return error


ERRORS: dict[str, Any] = {
    "CancelledError": lambda: asyncio.CancelledError("cancelled"),
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "GreenletExit": greenlet.GreenletExit,
    "StopIteration": lambda: StopIteration(5),
    "RecursionError": RecursionError,
    "MemoryError": MemoryError,
    "Odd": lambda: Odd("odd"),
    "Speechless": Speechless,
    "ValueError": _own_cause,
}
PLACES = ("callback", "encoder", "scheduler", "denoiser", "autoencoder", "output", "ending")
# What the models raise for the request that is to fail; there is one of them at a time.
_pending: dict[str, str] = {}


class RaisingUNet(UNet2DConditionModel):  # type: ignore[misc]
    def forward(self, sample: Any, *args: Any, **kwargs: Any) -> Any:
        # The request that shall fail is known by its latents, stacked or not.
        if bool((sample > 1000).any()):
            raise ERRORS[_pending["denoiser"]]()
        return super().forward(sample, *args, **kwargs)


class RaisingAutoencoder(AutoencoderKL):  # type: ignore[misc]
    def decode(self, z: Any, *args: Any, **kwargs: Any) -> Any:
        if bool((z > 1000).any()):
            raise ERRORS[_pending["autoencoder"]]()
        return super().decode(z, *args, **kwargs)


class BadOutput:
    def __init__(self, error: str) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Any:
        raise ERRORS[self.__dict__["error"]]()

    @property
    def __class__(self) -> Any:
        raise ERRORS[self.__dict__["error"]]()


class RaisingPipeline(StableDiffusionPipeline):  # type: ignore[misc]
    """Stable Diffusion with a keyword `fault`: where to raise what."""

    def __call__(
        self,
        prompt: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 3,
        guidance_scale: float = 5.0,
        generator: Any = None,
        output_type: str = "np",
        return_dict: bool = True,
        fault: tuple[str, str] | None = None,
    ) -> Any:
        place, error = fault or ("", "")

        def at_step(_pipeline: Any, step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            if place == "callback" and step == 1:
                raise ERRORS[error]()
            if (place == "denoiser" and step == 0) or (place == "autoencoder" and step == num_inference_steps - 1):
                _pending[place] = error
                return {"latents": torch.full_like(values["latents"], 1e6)}
            return {}

        if place == "scheduler":
            kind = type(self.scheduler)

            class RaisingScheduler(kind):  # type: ignore[misc, valid-type]
                def step(self, *args: Any, **kwargs: Any) -> Any:
                    raise ERRORS[error]()

            self.scheduler = RaisingScheduler.from_config(self.scheduler.config)
        if place == "encoder":

            def raising(*_: Any, **__: Any) -> Any:
                raise ERRORS[error]()

            self.encode_prompt = raising
        try:
            made = super().__call__(
                prompt,
                height=height,
                width=width,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                generator=generator,
                output_type=output_type,
                callback_on_step_end=at_step,
            )
        finally:
            if place == "ending":
                raise ERRORS[error]()
        return BadOutput(error) if place == "output" else made


def build() -> Any:
    parts = stable_diffusion_parts()
    parts["unet"].__class__ = RaisingUNet
    parts["vae"].__class__ = RaisingAutoencoder
    return RaisingPipeline(**parts)


def process_id(_worker: Any) -> int:
    """Called in a worker: which process it is."""
    return os.getpid()
