"""Switching on diffusers' parallelism on one model, with meshes that were made here."""

from __future__ import annotations

from typing import Any

import torch

from omni_core.errors import ConfigError


def enable_parallelism(what: str, module: torch.nn.Module, config: Any) -> None:
    """Let diffusers apply a `ParallelConfig` to a model.

    Args:
        what: What it is, for the message of an error.
        module: A model of diffusers.
        config: With its meshes set up.

    Raises:
        ConfigError: It cannot be done with this model; the message says why.
    """

    def resolved(_config: Any) -> Any:
        module._parallel_config = config
        return config

    # The method that would make the meshes. It takes all ranks of the process for its own, and divides by the number of
    # accelerators.
    module.__dict__["_resolve_parallel_config"] = resolved
    try:
        module.enable_parallelism(config=config)  # type: ignore[operator]
    except Exception as error:
        raise ConfigError(
            f"{what} cannot be done for {type(module).__name__}: {type(error).__name__}: {error}"
        ) from error
    finally:
        del module.__dict__["_resolve_parallel_config"]
