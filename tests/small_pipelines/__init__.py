"""Stock diffusers pipelines with small random weights, built in code: the same ones on every call.

`CASES` names each with the arguments of a quick request. A builder can be a `model` of its own:
`model="small_pipelines.images:stable_diffusion"`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from small_pipelines import audio, images, videos


def picture(size: int = 32) -> Image.Image:
    """A picture to start from, for image-to-image."""
    ramp = np.linspace(0, 255, size, dtype=np.uint8)
    return Image.fromarray(
        np.stack([np.tile(ramp, (size, 1)), np.tile(ramp[:, None], (1, size)), np.full((size, size), 90, np.uint8)], -1)
    )


@dataclass(frozen=True)
class Case:
    """One stock pipeline and a request for it.

    Attributes:
        build: Makes the pipeline.
        fields: Fields of the request.
        extra_args: Further keywords of the pipeline.
        output: The field of the output that holds the result.
    """

    build: Callable[[], Any]
    fields: dict[str, Any]
    extra_args: dict[str, Any] = field(default_factory=dict)
    output: str = "images"


CASES: dict[str, Case] = {
    "ddpm": Case(images.ddpm, {"num_inference_steps": 3}),
    "dit": Case(images.dit, {"num_inference_steps": 3, "guidance_scale": 3.0}, {"class_labels": [1]}),
    "stable_diffusion": Case(
        images.stable_diffusion,
        {"prompt": "a red seven", "height": 32, "width": 32, "num_inference_steps": 3, "guidance_scale": 5.0},
    ),
    "stable_diffusion_img2img": Case(
        images.stable_diffusion_img2img,
        {"prompt": "a red seven", "num_inference_steps": 4, "guidance_scale": 5.0},
        {"image": picture(), "strength": 0.75},
    ),
    "stable_diffusion_xl": Case(
        images.stable_diffusion_xl,
        {"prompt": "a red seven", "negative_prompt": "blue", "height": 32, "width": 32, "num_inference_steps": 3},
    ),
    "stable_diffusion_3": Case(
        images.stable_diffusion_3,
        {"prompt": "a red seven", "height": 32, "width": 32, "num_inference_steps": 3, "guidance_scale": 4.0},
        {"max_sequence_length": 16},
    ),
    "flux": Case(
        images.flux,
        {"prompt": "a red seven", "height": 16, "width": 16, "num_inference_steps": 3, "guidance_scale": 3.5},
        {"max_sequence_length": 16},
    ),
    "wan": Case(
        videos.wan,
        {"prompt": "a red seven", "height": 16, "width": 16, "num_inference_steps": 3, "output_type": "np"},
        {"num_frames": 5, "max_sequence_length": 16},
        output="frames",
    ),
    "dance_diffusion": Case(audio.dance_diffusion, {"num_inference_steps": 3}, output="audios"),
    "stable_audio": Case(
        audio.stable_audio,
        {"prompt": "a red seven", "num_inference_steps": 3, "output_type": "np"},
        {"audio_end_in_s": 0.05},
        output="audios",
    ),
}
