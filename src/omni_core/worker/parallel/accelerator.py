"""Assigns an accelerator to a worker process."""

from __future__ import annotations

import os

from omni_core.config import OmniDiffusionConfig


def choose_accelerator(config: OmniDiffusionConfig, local_index: int, num_local: int) -> None:
    """Make one accelerator visible to this process, before CUDA is initialised.

    Args:
        config: The configuration of the engine.
        local_index: Index of this worker among those of this machine.
        num_local: Number of workers of this machine. A single worker sees all accelerators.
    """
    if num_local == 1 or config.device not in ("auto", "cuda"):
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch

        visible = ",".join(map(str, range(torch.cuda.device_count())))
    devices = [device for device in visible.split(",") if device]
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[local_index % len(devices)]
