"""An image-to-image request: a stock pipeline of diffusers, from a factory, makes a red seven blue.

    python examples/image_to_image.py FOLDER

`model="module:function"` names a function that returns a pipeline. What only some pipelines take goes into
`extra_args`: here the picture to begin with and the strength of the change.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest


def make_pipeline() -> Any:
    """Build diffusers' image-to-image pipeline from the components of the shipped model."""
    import torch
    from diffusers import StableDiffusion3Img2ImgPipeline

    from omni_core.worker.pipeline.loader import SMALL_MODEL

    return StableDiffusion3Img2ImgPipeline.from_pretrained(SMALL_MODEL, dtype=torch.float32)


def main() -> None:
    """Draw a seven, change its colour, and save both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--strength", type=float, default=0.6, help="0 changes nothing, 1 draws anew")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)

    with DiffusionEngine() as engine:  # the shipped model, as text-to-image
        [drawn] = engine.step([OmniDiffusionRequest(prompt="a red seven", seed=32)])
    before = drawn.raise_for_error().images[0]
    before.save(folder / "before.png")

    config = OmniDiffusionConfig(
        model="image_to_image:make_pipeline",
        # A folder brings defaults of its own along, a factory does not.
        request_defaults={"height": 32, "width": 32, "max_sequence_length": 1, "num_inference_steps": 30},
    )
    request = OmniDiffusionRequest(
        prompt="a blue seven",
        guidance_scale=4.0,
        seed=1,
        extra_args={"image": before, "strength": arguments.strength},
    )
    with DiffusionEngine(config) as engine:
        [changed] = engine.step([request])
    changed.raise_for_error().images[0].save(folder / "after.png")
    print(f"{changed.metrics.num_steps} of 30 steps changed before.png into after.png, in {folder}")


if __name__ == "__main__":
    main()
