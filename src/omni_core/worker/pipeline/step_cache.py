"""Switching on the step caches of diffusers that the configuration names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import greenlet
import torch

from omni_core.errors import ConfigError, did_you_mean


def enable_cache(pipeline: Any, denoisers: Mapping[str, torch.nn.Module], wanted: str | dict[str, Any]) -> None:
    """Enable a cache on every denoiser that can have one.

    Args:
        pipeline: The pipeline that the denoisers belong to.
        denoisers: The denoisers by name.
        wanted: Name of a cache configuration of diffusers, or a table with `name` and its arguments.

    Raises:
        ConfigError: There is no such cache, its arguments are wrong, or no denoiser can have it.
    """
    arguments: dict[str, Any] = {"name": wanted} if isinstance(wanted, str) else dict(wanted)
    name = arguments.pop("name", None)
    known = _cache_configurations()
    if not isinstance(name, str) or name not in known:
        raise ConfigError(
            f"cache = {wanted!r} names no cache of diffusers.{did_you_mean(str(name), known)} "
            f"There are: {', '.join(sorted(known))}."
        )
    fields = {field.name for field in dataclasses.fields(known[name])}
    for argument in arguments:
        if argument not in fields:
            raise ConfigError(
                f"cache: {name} takes no {argument!r}.{did_you_mean(argument, fields)} "
                f"It takes: {', '.join(sorted(fields))}."
            )
    if "current_timestep_callback" in fields:
        arguments.setdefault("current_timestep_callback", _current_timestep)
    enabled = 0
    for module in denoisers.values():
        enable = getattr(module, "enable_cache", None)
        if enable is None:
            continue
        try:
            enable(known[name](**arguments))
        except Exception as error:
            raise ConfigError(
                f"cache = {name} cannot be used with {type(module).__name__}: {type(error).__name__}: {error}"
            ) from error
        enabled += 1
    if enabled == 0:
        raise ConfigError(f"cache = {name}: no denoiser of {type(pipeline).__name__} can have a cache.")


def _current_timestep() -> Any:
    """Return the timestep at which the pipeline of the running task is: each request has a copy of its own."""
    task = getattr(greenlet.getcurrent(), "task", None)
    return getattr(getattr(task, "pipeline", None), "current_timestep", None)


def _cache_configurations() -> dict[str, type[Any]]:
    import diffusers.hooks

    return {
        name: value
        for name in dir(diffusers.hooks)
        if name.endswith(("CacheConfig", "BroadcastConfig"))
        and isinstance(value := getattr(diffusers.hooks, name), type)
    }
