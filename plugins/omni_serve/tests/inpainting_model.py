"""A small pipeline that fills the masked part of a picture."""

from __future__ import annotations

from typing import Any

from diffusers import StableDiffusionInpaintPipeline

from omni_core.testing.pipelines import image_to_image


def build() -> Any:
    parts = image_to_image().components
    return StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
