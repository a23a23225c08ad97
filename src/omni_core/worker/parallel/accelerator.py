"""Which accelerator a worker process uses."""

from __future__ import annotations

import os

from omni_core.config import OmniDiffusionConfig


def choose_accelerator(config: OmniDiffusionConfig, local_index: int, num_local: int) -> None:
    """Show this process one accelerator of its own, before anything initialises CUDA.

    Args:
        config: The configuration of the engine.
        local_index: Number of this worker among those of this machine.
        num_local: Number of those. A single one sees what there is.
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
