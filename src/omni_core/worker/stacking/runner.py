"""Running denoiser calls, and agreeing with the other ranks on what came of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from omni_core.outputs import StackingStats

Result = TypeVar("Result")


class CallRunner:
    """Runs denoiser calls on a rank that has no others. `BatchParallel` runs them on several.

    Args:
        stats: Where kinds of calls that are refused are recorded.
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
        """Return the largest of each value over all ranks.

        Args:
            purpose: What it is about, the same on all ranks.
            values: Those of this rank.
        """
        return list(values)

    def agree_on(self, what: str, make: Callable[[], Result]) -> Result:
        """Return `make()`, or raise if it raises on any rank.

        Args:
            what: What it is about, the same on all ranks.
            make: May fail on one rank alone.
        """
        return make()
