"""The ranks of a replica as a grid of four dimensions: `[cfg, ring, ulysses, tensor]`. Pure arithmetic."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

from omni_core.config import OmniDiffusionConfig

Dimension = Literal["cfg", "ring", "ulysses", "tensor"]
DIMENSIONS: tuple[Dimension, ...] = ("cfg", "ring", "ulysses", "tensor")


@dataclass(frozen=True, slots=True)
class ParallelLayout:
    """The number of ranks along each dimension.

    The grid is in row-major order: `tensor` varies fastest, then `ulysses`, `ring` and `cfg`. So ranks that communicate
    the most have neighbouring numbers, and are close on most machines: tensor parallelism communicates twice per layer,
    Ulysses in each attention, ring during it, and `cfg` once per forward pass.

    Attributes:
        cfg: Number of parts of the rows of a forward pass.
        ring: Number of parts of the sequence that pass keys and values around.
        ulysses: Number of parts of the sequence that exchange attention heads.
        tensor: Number of parts of the weights.
    """

    cfg: int = 1
    ring: int = 1
    ulysses: int = 1
    tensor: int = 1

    @classmethod
    def of(cls, config: OmniDiffusionConfig) -> ParallelLayout:
        """Return the layout of a replica."""
        return cls(config.cfg_parallel_size, config.ring_degree, config.ulysses_degree, config.tensor_parallel_size)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The sizes in the order of `DIMENSIONS`."""
        return (self.cfg, self.ring, self.ulysses, self.tensor)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return math.prod(self.shape)

    @property
    def sequence(self) -> int:
        """Number of parts of the sequence."""
        return self.ring * self.ulysses

    @property
    def shares_forwards(self) -> bool:
        """Whether several ranks compute one forward pass together, so that none can run it alone."""
        return self.sequence * self.tensor > 1

    def coordinates(self, rank: int) -> tuple[int, int, int, int]:
        """Return the coordinates of a rank, in the order of `DIMENSIONS`."""
        found = []
        for size in reversed(self.shape):
            rank, place = divmod(rank, size)
            found.append(place)
        tensor, ulysses, ring, cfg = found
        return cfg, ring, ulysses, tensor

    def rank(self, coordinates: tuple[int, int, int, int]) -> int:
        """Return the rank with these coordinates."""
        rank = 0
        for place, size in zip(coordinates, self.shape, strict=True):
            rank = rank * size + place
        return rank

    def parts(self, *along: Dimension) -> list[list[int]]:
        """Return all ranks in parts: the ranks of a part differ along the given dimensions only. In ascending order."""
        choices = [
            (range(1) if name in along else range(size)) for name, size in zip(DIMENSIONS, self.shape, strict=True)
        ]
        steps = [
            (range(size) if name in along else range(1)) for name, size in zip(DIMENSIONS, self.shape, strict=True)
        ]
        return [
            [self.rank(_sum(origin, step)) for step in itertools.product(*steps)]
            for origin in itertools.product(*choices)
        ]


def _sum(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, int, int, int]:
    cfg, ring, ulysses, tensor = (a + b for a, b in zip(one, other, strict=True))
    return cfg, ring, ulysses, tensor
