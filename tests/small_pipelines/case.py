"""What the tests know of a small pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

PROMPT: dict[str, Any] = {"prompt": "a red seven", "num_inference_steps": 3}
SQUARE: dict[str, Any] = {"prompt": "a red seven", "height": 32, "width": 32, "num_inference_steps": 3}


def picture(size: int = 32) -> Image.Image:
    """A picture to start from, for image-to-image."""
    ramp = np.linspace(0, 255, size, dtype=np.uint8)
    return Image.fromarray(
        np.stack([np.tile(ramp, (size, 1)), np.tile(ramp[:, None], (1, size)), np.full((size, size), 90, np.uint8)], -1)
    )


def mask(size: int = 32) -> Image.Image:
    """White where to paint: the right half."""
    return Image.fromarray(np.tile(np.where(np.arange(size) < size // 2, 0, 255).astype(np.uint8), (size, 1)))


@dataclass(frozen=True)
class Case:
    """One stock pipeline and a request for it.

    Attributes:
        build: Makes the pipeline.
        fields: Fields of the request.
        extra_args: Further keywords of the pipeline.
        output: The field of the output that holds the result.
        family: Which pipelines it is one of: those that share a denoiser's architecture and a way of calling it.
        steps: Denoising steps of the request, in all its stages.
        is_total_known: Whether the steps in all can be told from the first on: not where a pipeline opens one progress
            bar after another and has no argument for the steps of each.
        steps_argument: What the pipeline calls the number of steps.
        exact_output_type: An `output_type` that is not rounded to 8 bits; None if the pipeline takes none.
    """

    build: Callable[[], Any]
    fields: dict[str, Any]
    extra_args: dict[str, Any] = field(default_factory=dict)
    output: str = "images"
    family: str = field(kw_only=True)
    steps: int = 3
    is_total_known: bool = True
    steps_argument: str = "num_inference_steps"
    exact_output_type: str | None = "np"
