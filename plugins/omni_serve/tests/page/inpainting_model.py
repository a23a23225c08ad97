"""A pipeline that paints a part of a picture anew, with random weights."""

from __future__ import annotations

from typing import Any

from diffusers import StableDiffusionInpaintPipeline

from omni_core.testing.pipelines import image_to_image


def build() -> Any:
    # Its denoiser sees latents alone, as those of pipelines do that were not trained for this.
    return StableDiffusionInpaintPipeline(**image_to_image().components, requires_safety_checker=False)
