"""Computing one forward pass on several ranks: checks the configuration, and enables it."""

from __future__ import annotations

import torch

from omni_core.config import OmniDiffusionConfig
from omni_core.errors import ConfigError
from omni_core.worker.parallel.layout import ParallelLayout
from omni_core.worker.parallel.model_parallel import enable_sequence_parallelism, enable_tensor_parallelism
from omni_core.worker.parallel.replica_ranks import ReplicaRanks
from omni_core.worker.pipeline.denoisers import find_denoisers
from omni_core.worker.pipeline.loader import LoadedPipeline


def refuse_impossible(config: OmniDiffusionConfig, device: torch.device) -> None:
    """Refuse impossible configurations before anything is loaded.

    Raises:
        ConfigError: The device or other options exclude the configured parallelism.
    """
    layout = ParallelLayout.of(config)
    for name, size in (("ring_degree", layout.ring), ("tensor_parallel_size", layout.tensor)):
        if size > 1 and device.type == "cpu":
            raise ConfigError(
                f"{name} = {size} needs a GPU, and this worker computes on the CPU. "
                "There, ulysses_degree, cfg_parallel_size and data_parallel_size can be used."
            )
    if layout.tensor > 1 and layout.sequence > 1:
        raise ConfigError(
            f"tensor_parallel_size = {layout.tensor} cannot be combined with ulysses_degree = {layout.ulysses} and "
            f"ring_degree = {layout.ring}: diffusers does not split the weights and the sequence of one model. "
            "Choose one of them; each can be combined with cfg_parallel_size."
        )
    if layout.sequence > 1 and config.cache is not None:
        raise ConfigError(
            "cache cannot be combined with ulysses_degree or ring_degree: a step cache decides by what it sees what "
            "to compute, and each rank sees another part of the sequence."
        )
    if layout.tensor > 1 and config.offload != "none":
        raise ConfigError(
            f"offload = {config.offload!r} cannot be combined with tensor_parallel_size = {layout.tensor}: both decide "
            "where a weight lives."
        )


def enable(loaded: LoadedPipeline, config: OmniDiffusionConfig, ranks: ReplicaRanks) -> None:
    """Enable sequence or tensor parallelism in the denoisers of a pipeline. All ranks that share forwards must call.

    Args:
        loaded: The pipeline, on its device.
        config: The configuration.
        ranks: The ranks.

    Raises:
        ConfigError: The model does not support it.
    """
    pipeline, device = loaded.pipeline, loaded.device
    if ranks.layout.sequence > 1:
        enable_sequence_parallelism(pipeline, find_denoisers(pipeline), ranks, device, config.attention_backend)
    if ranks.layout.tensor > 1:
        enable_tensor_parallelism(pipeline, find_denoisers(pipeline), ranks, device)
