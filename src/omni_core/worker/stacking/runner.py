"""Runs denoiser calls, and agrees with the other ranks on their results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from omni_core.outputs import StackingStats

Result = TypeVar("Result")


class CallRunner:
    """Runs denoiser calls on a single rank. `BatchParallel` runs them on several.

    Args:
        stats: Records the kinds of calls that are refused.
    """

    def __init__(self, stats: StackingStats) -> None:
        self.stats = stats

    @property
    def is_alone(self) -> bool:
        """Whether there are no other ranks."""
        return True

    def run(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return `module(*args, **kwargs)`. All ranks must make the same call."""
        return module(*args, **kwargs)

    def agree_all(self, purpose: str, values: Sequence[float]) -> list[float]:
        """Return the maximum of each value over all ranks.

        Args:
            purpose: Name of the exchange, the same on all ranks.
            values: The values of this rank.
        """
        return list(values)

    def agree_on(self, what: str, make: Callable[[], Result]) -> Result:
        """Return `make()`. If it raises on any rank, all ranks raise.

        Args:
            what: Name of the exchange, the same on all ranks.
            make: A function that may fail on one rank only.
        """
        return make()
