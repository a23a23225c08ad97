"""Step caches of diffusers, kept apart by request.

diffusers' caches keep what they remember in hooks on the modules, for one pipeline call at a time. Here several calls
take turns on the same modules, so what the hooks remember belongs to a task, like its torch state: it is put in place
whenever the task runs, and taken away when it is suspended.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from omni_core.worker.pipeline.diffusers_hooks import state_holders


class CacheState:
    """What the cache hooks of some modules remember of one request.

    Args:
        modules: The denoisers on which a cache is enabled.
    """

    def __init__(self, modules: Sequence[torch.nn.Module]) -> None:
        self._holders = [holder for module in modules for holder in state_holders(module)]
        # Begins empty: as the hooks are right after the cache was enabled.
        self._mine = [{name: _empty(value) for name, value in kept.items()} for _, kept in self._holders]
        self._outside: list[dict[str, Any]] = []

    @property
    def is_active(self) -> bool:
        """Whether there is anything to keep apart."""
        return bool(self._holders)

    def swap_in(self) -> None:
        """Put what this request's hooks remember in place."""
        self._outside = self._exchange(self._mine)

    def swap_out(self) -> None:
        """Take it away, and put back what was there before."""
        self._mine = self._exchange(self._outside)

    def _exchange(self, new: list[dict[str, Any]]) -> list[dict[str, Any]]:
        old = []
        for (holder, kept), values in zip(self._holders, new, strict=True):
            old.append({name: getattr(holder, name) for name in kept})
            for name, value in values.items():
                setattr(holder, name, value)
        return old


def _empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {}
    if value is None:
        return None
    fresh = copy.copy(value)
    fresh.reset()
    return fresh
