"""A small picture of a request in the middle of its denoising."""

from __future__ import annotations

import math
from typing import Any

import torch
from PIL import Image

# Most latent pixels on a side that are decoded: a preview must cost a fraction of a step.
_MOST_LATENT_PIXELS = 16


def preview(pipeline: Any, latents: Any) -> Image.Image | None:
    """Return what the latents look like so far, or None if they are no picture (audio).

    Latents of an `AutoencoderKL` are made small and decoded. Others are shown as they are: their first three channels,
    stretched to the range of a picture.

    Args:
        pipeline: The pipeline that is running.
        latents: What its scheduler's last step gave: `[rows, channels, height, width]`, `[rows, channels, frames,
            height, width]`, or packed `[rows, tokens, channels]`. The first row is shown, of a video the middle frame.
    """
    if not isinstance(latents, torch.Tensor):
        return None
    plane = _plane(latents)
    if plane is None:
        return None
    with torch.no_grad():
        picture = _decode(pipeline, plane) if latents.ndim == 4 else None
        if picture is None:
            picture = _stretch(plane)
        array = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)


def _plane(latents: torch.Tensor) -> torch.Tensor | None:
    """Return one picture's latents `[channels, height, width]`."""
    if latents.ndim == 4:
        return latents[0]
    if latents.ndim == 5:
        return latents[0, :, latents.shape[2] // 2]
    if latents.ndim == 3:
        side = math.isqrt(latents.shape[1])
        if side * side == latents.shape[1]:
            return latents[0].T.reshape(-1, side, side)
    return None


def _decode(pipeline: Any, plane: torch.Tensor) -> torch.Tensor | None:
    vae: Any = getattr(pipeline, "vae", None)
    if type(vae).__name__ != "AutoencoderKL" or vae.config.latent_channels != plane.shape[0]:
        return None
    factor = max(1, math.ceil(max(plane.shape[1:]) / _MOST_LATENT_PIXELS))
    small = torch.nn.functional.avg_pool2d(plane[None], factor)
    small = small / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
    # Outside of a task a stand-in runs at once.
    decoded: torch.Tensor = vae.decode(small.to(vae.dtype), return_dict=False)[0][0]
    return decoded.float() / 2 + 0.5


def _stretch(plane: torch.Tensor) -> torch.Tensor:
    channels = plane[:3].float()
    if channels.shape[0] < 3:
        channels = channels[:1].expand(3, -1, -1)
    low, high = channels.amin(), channels.amax()
    return (channels - low) / (high - low).clamp_min(1e-6)
