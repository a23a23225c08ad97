"""Sequence and tensor parallelism inside the denoisers, according to the plans of their model classes.

Sequence: each rank computes a part of the sequence, `[rows, tokens / ranks, dim]`, and the ranks exchange what
attention needs (Ulysses and ring, diffusers' context parallelism). diffusers does this with hooks and `_cp_plan`; every
rank gets the whole output. Tensor: each rank holds a part of the weights, according to `_tp_plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from omni_core.errors import ConfigError
from omni_core.log import get_logger
from omni_core.worker.parallel.replica_ranks import ReplicaRanks

log = get_logger(__name__)

# Ring attention combines partial results, for which it needs their log-sum-exp. diffusers' "native" backend, where
# torch chooses the kernel, does not return it. The cuDNN kernel does, in half precision.
_WITHOUT_SUMS = "native"
_RING_BACKEND = "_native_cudnn"


def enable_sequence_parallelism(
    pipeline: Any,
    denoisers: Mapping[str, torch.nn.Module],
    ranks: ReplicaRanks,
    device: torch.device,
    attention_backend: str | None = None,
) -> None:
    """Split the sequence of each denoiser whose class has a plan. Others run whole on every rank.

    Args:
        pipeline: The pipeline that the denoisers belong to.
        denoisers: The denoisers by name.
        ranks: The ranks.
        device: The device of this rank.
        attention_backend: The configured attention implementation, if any.

    Raises:
        ConfigError: A denoiser cannot be split; the message says which and why.
    """
    from diffusers import ContextParallelConfig
    from diffusers.models import ParallelConfig

    layout = ranks.layout
    what = f"ulysses_degree = {layout.ulysses}, ring_degree = {layout.ring}"
    planned = _with_plan(what, pipeline, denoisers, "_cp_plan", "sequence")
    for module in planned.values():
        _refuse_model(what, module, layout.ring, layout.ulysses, attention_backend)
    config = ContextParallelConfig(ring_degree=layout.ring, ulysses_degree=layout.ulysses)
    config._rank, config._world_size, config._device = ranks.everyone.rank, ranks.everyone.world_size, device
    config._ring_mesh = _mesh(ranks, device, "ring")
    config._ulysses_mesh = _mesh(ranks, device, "ulysses")
    config._flattened_mesh = _mesh(ranks, device, "ring", "ulysses")
    config._ring_local_rank = config._ring_mesh.get_local_rank()
    config._ulysses_local_rank = config._ulysses_mesh.get_local_rank()

    def release() -> None:
        config._ring_mesh = config._ulysses_mesh = config._flattened_mesh = None

    ranks.everyone.on_release(release)
    for name, module in planned.items():
        if layout.ring > 1 and attention_backend is None:
            module.set_attention_backend(_RING_BACKEND)  # type: ignore[operator]
        enable_parallelism(f"{what} for {name}", module, ParallelConfig(context_parallel_config=config))


def _with_plan(
    what: str, pipeline: Any, denoisers: Mapping[str, torch.nn.Module], plan: str, split: str
) -> dict[str, torch.nn.Module]:
    """Return the denoisers whose class has a plan, and log the others.

    Raises:
        ConfigError: No class has a plan.
    """
    planned = {name: module for name, module in denoisers.items() if getattr(module, plan, None) is not None}
    whole = {name: type(module).__name__ for name, module in denoisers.items() if name not in planned}
    if not planned:
        classes = ", ".join(dict.fromkeys(whole.values())) or "no denoiser"
        raise ConfigError(
            f"{what}: {type(pipeline).__name__} cannot split its {split}. It has {classes}, and diffusers has no plan "
            f"for that (a class with one has {plan}). Use cfg_parallel_size or data_parallel_size."
        )
    if whole:
        log.info(f"these run whole on every rank: diffusers has no plan for splitting their {split}", modules=whole)
    return planned


def _mesh(ranks: ReplicaRanks, device: torch.device, *dimensions: Any) -> DeviceMesh:
    # From our own groups: diffusers would build a mesh over all ranks of the process, which may belong to other
    # replicas, and from the number of accelerators, which is 0 on a CPU.
    group = ranks.along(*dimensions).process_group
    return DeviceMesh.from_group(group, device.type, mesh_dim_names=("_".join(dimensions),))


def _refuse_model(what: str, module: torch.nn.Module, ring: int, ulysses: int, attention_backend: str | None) -> None:
    from diffusers.models.attention import AttentionModuleMixin
    from diffusers.models.attention_processor import Attention, MochiAttention

    model = type(module).__name__
    for part in module.modules():
        if not isinstance(part, (Attention, MochiAttention, AttentionModuleMixin)):
            continue
        processor = getattr(part, "processor", None)
        if processor is not None and not hasattr(processor, "_parallel_config"):
            raise ConfigError(
                f"{what}: the attention processor {type(processor).__name__} of {model} knows nothing of sequence "
                "parallelism. Leave out what puts it there, or use cfg_parallel_size or data_parallel_size."
            )
        heads = getattr(part, "heads", None)
        if isinstance(heads, int) and heads % ulysses:
            raise ConfigError(
                f"{what}: {model} has {heads} attention heads, which {ulysses} ranks cannot share evenly. "
                f"Choose an ulysses_degree that divides {heads}."
            )
    if ring > 1 and attention_backend == _WITHOUT_SUMS:
        raise ConfigError(
            f"{what}: ring attention does not work with attention_backend = {_WITHOUT_SUMS!r}, which does not tell "
            f"what ring needs. Leave attention_backend unset for {_RING_BACKEND!r}."
        )
    dtype = next((parameter.dtype for parameter in module.parameters()), None)
    if ring > 1 and dtype not in (torch.float16, torch.bfloat16):
        raise ConfigError(f"{what}: ring attention needs dtype = 'bfloat16' or 'float16'; {model} has {dtype}.")


def enable_tensor_parallelism(
    pipeline: Any, denoisers: Mapping[str, torch.nn.Module], ranks: ReplicaRanks, device: torch.device
) -> None:
    """Split the weights of each denoiser whose class has a plan. Others run whole on every rank.

    Args:
        pipeline: The pipeline that the denoisers belong to.
        denoisers: The denoisers by name, on their device.
        ranks: The ranks.
        device: The device of this rank.

    Raises:
        ConfigError: A denoiser cannot be split; the message says which and why.
    """
    from diffusers.models import ParallelConfig, TensorParallelConfig

    what = f"tensor_parallel_size = {ranks.layout.tensor}"
    planned = _with_plan(what, pipeline, denoisers, "_tp_plan", "weights")
    group = ranks.along("tensor").process_group
    mesh = DeviceMesh.from_group(group, device.type, mesh_dim_names=("tensor",))
    config = TensorParallelConfig(tp_degree=ranks.layout.tensor, mesh=mesh)
    config.setup(ranks.everyone.rank, ranks.everyone.world_size, device, mesh)
    for name, module in planned.items():
        enable_parallelism(f"{what} for {name}", module, ParallelConfig(tensor_parallel_config=config))


def enable_parallelism(what: str, module: torch.nn.Module, config: Any) -> None:
    """Let diffusers apply a `ParallelConfig` to a model.

    Args:
        what: Description for the error message.
        module: A model of diffusers.
        config: The configuration, with its meshes.

    Raises:
        ConfigError: diffusers cannot apply it to this model; the message says why.
    """

    def resolved(_config: Any) -> Any:
        module._parallel_config = config
        return config

    # Replaces the method that would create the meshes from all ranks of the process and the number of accelerators.
    module.__dict__["_resolve_parallel_config"] = resolved
    try:
        module.enable_parallelism(config=config)  # type: ignore[operator]
    except Exception as error:
        raise ConfigError(
            f"{what} cannot be done for {type(module).__name__}: {type(error).__name__}: {error}"
        ) from error
    finally:
        del module.__dict__["_resolve_parallel_config"]
