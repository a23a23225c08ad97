"""Tensor parallelism inside of the denoisers: each rank holds a part of the weights, by the model's `_tp_plan`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from omni_core.errors import ConfigError
from omni_core.log import get_logger
from omni_core.worker.parallel.enable_parallelism import enable_parallelism
from omni_core.worker.parallel.replica_ranks import ReplicaRanks

log = get_logger(__name__)


def enable_tensor_parallelism(
    pipeline: Any, denoisers: Mapping[str, torch.nn.Module], ranks: ReplicaRanks, device: torch.device
) -> None:
    """Split the weights of each denoiser that has a plan for it. Others run whole on every rank.

    Args:
        pipeline: The pipeline that the denoisers belong to.
        denoisers: The denoisers by name, on their device.
        ranks: The ranks.
        device: Where this one computes.

    Raises:
        ConfigError: The denoisers cannot be split so; the message says which and why.
    """
    from diffusers.models import ParallelConfig, TensorParallelConfig

    what = f"tensor_parallel_size = {ranks.layout.tensor}"
    planned = {name: module for name, module in denoisers.items() if getattr(module, "_tp_plan", None) is not None}
    whole = {name: type(module).__name__ for name, module in denoisers.items() if name not in planned}
    if not planned:
        classes = ", ".join(dict.fromkeys(whole.values())) or "no denoiser"
        raise ConfigError(
            f"{what}: {type(pipeline).__name__} cannot split its weights. It has {classes}, and diffusers has no plan "
            "for that (a class with one has _tp_plan). Use cfg_parallel_size or data_parallel_size."
        )
    group = ranks.along("tensor").process_group
    mesh = DeviceMesh.from_group(group, device.type, mesh_dim_names=("tensor",))
    config = TensorParallelConfig(tp_degree=ranks.layout.tensor, mesh=mesh)
    config.setup(ranks.everyone.rank, ranks.everyone.world_size, device, mesh)
    for name, module in planned.items():
        enable_parallelism(f"{what} for {name}", module, ParallelConfig(tensor_parallel_config=config))
    if whole:
        log.info("these run whole on every rank: diffusers has no plan for splitting their weights", modules=whole)
