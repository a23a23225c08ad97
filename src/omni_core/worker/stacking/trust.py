"""Decides when a verified kind of call is verified again.

Stacking is first verified with the values of the first stacked call. A model may be right with these values and wrong
with others: it may use the timestep of the first row for all rows, or be wrong above some number of rows or below some
timestep. So a kind is verified again when a tensor differs between requests for the first time, and when there are
twice as many rows as ever before. In addition, one part of the 4th, 16th, 64th … call, and then of one call in 100 to
300, is run alone and compared.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from omni_core.worker.stacking.call import DenoiserCall
from omni_core.worker.stacking.plan import EqualTensors

Doubt = Literal["none", "a sample", "all"]
DOUBTS: tuple[Doubt, ...] = get_args(Doubt)

# Minimum and maximum number of calls between two samples. One more forward pass in 200 costs 0.5 %, or less if a pass
# of few rows is faster than one of many.
_FEWEST_CALLS, _MOST_CALLS = 100, 300
# Factor by which the number of calls grows between the first samples.
_GROWTH = 4


@dataclass(slots=True)
class Trust:
    """What one kind of call was verified with. Deterministic: the same calls give the same decisions on all ranks.

    Attributes:
        equal: Positions of the leaves that were equal in all parts of each verified call.
        sizes: The verified sizes: the number of rows as a power of two.
        calls: Number of stacked calls since the first verification, which is included.
        next_sample: The value of `calls` at which the next sample is verified.
    """

    equal: set[int] = field(default_factory=set)
    sizes: set[int] = field(default_factory=set)
    calls: int = 0
    next_sample: int = _GROWTH
    _same: EqualTensors = field(default_factory=EqualTensors)
    _random: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311

    def count(self, calls: Sequence[DenoiserCall]) -> Doubt:
        """Count a stacked call before it runs, and return how much of it must be verified."""
        self.calls += 1
        if _size(calls) not in self.sizes or not all(self._are_equal(calls, position) for position in self.equal):
            return "all"
        if self.calls < self.next_sample:
            return "none"
        self.next_sample = min(self.calls * _GROWTH, self.calls + self._random.randint(_FEWEST_CALLS, _MOST_CALLS))
        return "a sample"

    def choose(self, calls: Sequence[DenoiserCall]) -> int:
        """Choose the part that is run alone: a random one, since a model may use the first or the last row for all."""
        return self._random.randrange(len(calls))

    def note_verified(self, calls: Sequence[DenoiserCall]) -> None:
        """Record that stacking of these calls was verified."""
        candidates = self.equal
        if not self.sizes:
            self.calls = 1
            candidates = {index for index, leaf in enumerate(calls[0].leaves) if isinstance(leaf, torch.Tensor)}
        self.equal = {index for index in candidates if self._are_equal(calls, index)}
        self.sizes.add(_size(calls))

    def _are_equal(self, calls: Sequence[DenoiserCall], position: int) -> bool:
        leaves = [call.leaves[position] for call in calls]
        try:
            return all(leaf.shape == leaves[0].shape for leaf in leaves) and self._same.are_equal(leaves)
        except Exception:  # tensors without data, for example: they cannot be compared
            return False


def _size(calls: Sequence[DenoiserCall]) -> int:
    return (sum(call.rows for call in calls) - 1).bit_length()
