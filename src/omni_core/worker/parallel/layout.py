"""Which rank of a replica does which part of the work: the ranks as a grid of four dimensions. Pure arithmetic."""

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
    """How many ranks there are along each dimension.

    Ranks are numbered with `tensor` running fastest, then `ulysses`, `ring` and `cfg`: those that exchange the most
    are neighbours (tensor parallel twice in each layer, Ulysses in each attention, ring while it computes, `cfg`
    once for a forward), and neighbours are the nearest on most machines.

    Attributes:
        cfg: Parts of the rows of a forward.
        ring: Parts of the sequence whose keys and values go round.
        ulysses: Parts of the sequence that exchange heads.
        tensor: Parts of the weights.
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
        """Parts of the sequence."""
        return self.ring * self.ulysses

    @property
    def shares_forwards(self) -> bool:
        """Whether several ranks compute one forward together, so that none can run it without the others."""
        return self.sequence * self.tensor > 1

    def coordinates(self, rank: int) -> tuple[int, int, int, int]:
        """Return where a rank stands, in the order of `DIMENSIONS`."""
        found = []
        for size in reversed(self.shape):
            rank, place = divmod(rank, size)
            found.append(place)
        tensor, ulysses, ring, cfg = found
        return cfg, ring, ulysses, tensor

    def rank(self, coordinates: tuple[int, int, int, int]) -> int:
        """Return the rank that stands there."""
        rank = 0
        for place, size in zip(coordinates, self.shape, strict=True):
            rank = rank * size + place
        return rank

    def parts(self, *along: Dimension) -> list[list[int]]:
        """Return the ranks in parts: in each, those that differ along the given dimensions only, in their order."""
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
