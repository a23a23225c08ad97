"""Pipelines and executors for the tests of the command line, named there by import path."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
from PIL import Image

from omni_core import DiffusionExecutor
from omni_core.errors import ExecutorError


class Painter:
    """A pipeline of plain Python: a picture in one colour."""

    def __call__(self, prompt, negative_prompt=None, num_images_per_prompt=1, output_type="pil", size=32, image=None):
        if "fail" in prompt:
            raise RuntimeError("the brush broke")
        if image is not None:
            size = image.width
        pictures = [Image.new("RGB", (size, size // 2), (200, 10 * n, 0)) for n in range(num_images_per_prompt)]
        if output_type == "np":
            return {"images": np.stack([np.asarray(picture, np.float32) / 255 for picture in pictures])}
        return {"images": pictures, "nsfw_content_detected": None}


class Filmer:
    def __call__(self, prompt=None, num_frames=3, output_type="np"):
        ramp = np.linspace(0, 1, num_frames, dtype=np.float32)[None, :, None, None, None]
        return {"frames": np.broadcast_to(ramp, (1, num_frames, 16, 24, 3)).copy()}


class Singer:
    sample_rate = 8000

    def __call__(self, prompt=None, seconds=0.5):
        wave = np.sin(np.arange(int(seconds * 8000)) / 5).astype(np.float32)
        return {"audios": np.stack([wave, -2 * wave])[None]}


class Nameless:
    """Sound, and no word about its rate."""

    def __call__(self, prompt=None):
        return {"audios": np.zeros((1, 44_100), np.float32)}


class Talker:
    """A video and its sound."""

    sample_rate = 8000

    def __call__(self, prompt=None):
        return {**Filmer()(), **Singer()()}


class Thinker:
    """Neither to be seen nor heard."""

    def __call__(self, prompt=None):
        return {"image_embeds": np.zeros((1, 8), np.float32)}


class Shouter(Painter):
    """Writes to the descriptors of standard output and error, as libraries in C do, while it has a file open."""

    def __call__(self, prompt):
        with Path("shouted").open("w") as file:
            file.write("kept")
            file.flush()
            for number in (1, 2):
                with contextlib.suppress(OSError):
                    os.write(number, b"a warning\n")
        return super().__call__(prompt)


class Sculptor:
    def __call__(self, prompt=None):
        return {"mesh": object()}


def ddpm():
    """A stock pipeline that can be asked for very many steps."""
    import torch
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(16, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    return DDPMPipeline(unet.eval(), DDPMScheduler(100_000, beta_start=1e-6, beta_end=2e-4))


class NoStart(DiffusionExecutor):
    def _init_executor(self):
        raise RuntimeError("no electricity")

    def collective_rpc(self, method, timeout=None, args=(), kwargs=None, unique_reply_rank=None):
        raise NotImplementedError

    def execute_model(self, requests):
        raise ExecutorError("the workers are gone")

    def check_health(self):
        raise ExecutorError("the workers are gone")

    def shutdown(self):
        pass


class Dying(NoStart):
    """Starts, and cannot serve."""

    def _init_executor(self):
        pass
