"""A pipeline of one's own: it writes the prompt with points, by a denoiser that is known exactly and never trained.

    python examples/own_pipeline.py FOLDER

The distribution is a mixture of narrow Gaussians, one on each of 300 places in the prompt's letters. Its score has a
closed form, so diffusion draws true samples of it. The engine knows nothing of this pipeline: it runs the denoiser
calls of several requests as one forward pass, and shows their progress, because the denoiser is a torch module.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, DDIMScheduler, DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image, ImageDraw, ImageFont

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest

NUM_PLACES = 300
WIDTH, HEIGHT = 384, 128


class MixtureDenoiser(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Predicts the noise in points that come from a mixture of Gaussians of one width."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, width: float = 0.01) -> None:
        super().__init__()
        self.spread = torch.nn.Parameter(torch.tensor(width), requires_grad=False)

    def forward(self, points: torch.Tensor, signal: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Return the expected noise in `points` (rows, n, 2), whose clean share is `signal` (rows) in variance."""
        share = signal[:, None, None]
        variance = share * self.spread**2 + 1 - share
        away = points[:, :, None] - share.sqrt()[..., None] * places[:, None]  # (rows, n, places, 2)
        weights = torch.softmax(-away.square().sum(-1) / (2 * variance), dim=-1)
        return (1 - share).sqrt() / variance * (weights[..., None] * away).sum(2)


class PointWriter(DiffusionPipeline):  # type: ignore[misc]
    """Draws samples of the mixture of a prompt."""

    def __init__(self, denoiser: MixtureDenoiser, scheduler: DDIMScheduler) -> None:
        super().__init__()
        self.register_modules(denoiser=denoiser, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str,
        *,
        num_inference_steps: int = 50,
        num_images_per_prompt: int = 1,
        num_points: int = 1500,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Draw; the keywords that omni's requests have fields for carry the names that diffusers gives them."""
        device = self._execution_device
        places = torch.tensor(places_in(prompt), device=device)[None].repeat(num_images_per_prompt, 1, 1)
        shape = (num_images_per_prompt, num_points, 2)
        points = randn_tensor(shape, generator=generator, device=device)
        self.scheduler.set_timesteps(num_inference_steps)
        for step in self.progress_bar(self.scheduler.timesteps):
            signal = self.scheduler.alphas_cumprod[step].to(device).repeat(num_images_per_prompt)
            noise = self.denoiser(points, signal=signal, places=places)
            points = self.scheduler.step(noise, step, points).prev_sample
        found = points.cpu().numpy()
        images = [picture_of(one) for one in found] if output_type == "pil" else found
        return ImagePipelineOutput(images) if return_dict else (images,)


def ink_of(text: str) -> Image.Image:
    """Return the text, drawn in white on black."""
    image = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(image).text((WIDTH // 2, HEIGHT // 2), text, 255, ImageFont.load_default(90), anchor="mm")
    return image


def places_in(text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return `NUM_PLACES` places (x, y) in the ink of the text, as multiples of half of the picture's height."""
    rows, columns = np.nonzero(np.asarray(ink_of(text)) > 127)
    if not len(rows):
        raise ValueError(f"there is nothing to write in {text!r}")
    chosen = np.random.default_rng(0).choice(len(rows), NUM_PLACES)
    found = np.stack([columns - WIDTH / 2, rows - HEIGHT / 2], axis=1)[chosen] / (HEIGHT / 2)
    return found.astype(np.float32)


def picture_of(points: np.ndarray[Any, np.dtype[np.float32]]) -> Image.Image:
    """Return the points as dots on white."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    for x, y in (points * (HEIGHT / 2) + (WIDTH / 2, HEIGHT / 2)).tolist():
        draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill=(35, 75, 220))
    return image


def make_pipeline(width: float = 0.01) -> PointWriter:
    """Build the pipeline; `model_options` holds the arguments."""
    return PointWriter(MixtureDenoiser(width), DDIMScheduler(clip_sample=False))


def main() -> None:
    """Write four words at once."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the pictures go")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    words = ("omni", "plugin", "steps", "2026")
    config = OmniDiffusionConfig(model="own_pipeline:make_pipeline", model_options={"width": 0.01})
    with DiffusionEngine(config) as engine:
        handles = engine.submit_all([OmniDiffusionRequest(prompt=word, seed=seed) for seed, word in enumerate(words)])
        for event in handles[0].events(timeout=60.0):
            if event.kind == "step" and event.step % 10 == 0:
                print(f"{words[0]}: step {event.step} of {event.num_steps}")
        for word, handle in zip(words, handles, strict=True):
            output = handle.result(60.0).raise_for_error()
            output.images[0].save(folder / f"{word}.png")
            print(f"{word}: {output.metrics.num_calls} calls, in forward passes of {output.metrics.mean_rows:.1f} rows")


if __name__ == "__main__":
    main()
