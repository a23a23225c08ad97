"""The kinds of pipelines that results are compared for, with a quick request for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_MODULE = "omni_core.testing.pipelines"
FAULTY = f"{_MODULE}:faulty"
PROMPT = {"prompt": "a red seven", "guidance_scale": 4.0}


def picture_to_start_from(size: int = 32) -> Any:
    """Return a picture for image-to-image."""
    import numpy as np
    from PIL import Image

    ramp = np.linspace(0, 255, size, dtype=np.uint8)
    channels = [np.tile(ramp, (size, 1)), np.tile(ramp[:, None], (1, size)), np.full((size, size), 90, np.uint8)]
    return Image.fromarray(np.stack(channels, -1))


@dataclass(frozen=True)
class Family:
    """One kind of pipeline.

    Attributes:
        fields: Fields of a quick request.
        extra_args: Further keywords of the pipeline.
        output: The field of the output that holds the result.
        takes_picture: Whether it needs a picture to start from.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    extra_args: dict[str, Any] = field(default_factory=dict)
    output: str = "images"
    takes_picture: bool = False

    def arguments(self) -> dict[str, Any]:
        """Return keywords for a request, without a seed."""
        extra_args = dict(self.extra_args)
        if self.takes_picture:
            extra_args["image"] = picture_to_start_from()
        return {"num_inference_steps": 4, "output_type": "np", **self.fields, "extra_args": extra_args}


FAMILIES: dict[str, Family] = {
    "picture": Family({**PROMPT, "height": 32, "width": 32}, {"max_sequence_length": 16}),
    "image_to_image": Family(PROMPT, {"strength": 0.75}, takes_picture=True),
    "class_conditional": Family({"guidance_scale": 3.0}, {"class_labels": [1]}),
    "video": Family(
        {**PROMPT, "height": 16, "width": 16}, {"num_frames": 5, "max_sequence_length": 16}, output="frames"
    ),
    "audio": Family({"prompt": "a red seven"}, {"audio_end_in_s": 0.05}, output="audios"),
    "unconditional": Family(),
}


def model_of(family: str) -> str:
    """Return what to set `model` to."""
    return f"{_MODULE}:{family}"


def factory(name: str) -> str:
    """Return the import path of a factory that goes wrong."""
    return f"{_MODULE}:{name}"
