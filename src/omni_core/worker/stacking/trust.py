"""How long a verdict on a kind of call holds: what it was found with, and when it is to be looked at again.

Stacking is verified with the numbers that the first company happens to have. A model may be right with these and wrong
with others: it reads the first row's timestep for all, goes wrong above some number of rows, or below some timestep. So
a kind is verified again when a tensor differs between the requests that never did before, and when there are twice as
many rows as ever. Besides, one part of a stacked call is run alone as well, and compared, with the 4th, the 16th, the
64th call and so on, and then with one of some hundreds.
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

# Between two samples are so many calls at least and at most. One more forward in 200 costs 0.5 %, and less where a
# forward of few rows takes less time than one of many.
_FEWEST_CALLS, _MOST_CALLS = 100, 300
# By so much the number of calls grows from one sample to the next, up to there.
_GROWTH = 4


@dataclass(slots=True)
class Trust:
    """What the verdict on one kind of call rests on. The same calls give the same answers on all ranks.

    Attributes:
        equal: Positions of the leaves that have not differed yet between the parts of a call that was verified.
        sizes: Sizes of calls, by powers of two of their rows, with which it was verified.
        calls: Stacked calls since the kind was first verified, that one included.
        next_sample: With how many of these a part is run alone again.
    """

    equal: set[int] = field(default_factory=set)
    sizes: set[int] = field(default_factory=set)
    calls: int = 0
    next_sample: int = _GROWTH
    _same: EqualTensors = field(default_factory=EqualTensors)
    _random: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311

    def count(self, calls: Sequence[DenoiserCall]) -> Doubt:
        """Count a stacked call that is about to be made, and return what of it is to be verified."""
        self.calls += 1
        if _size(calls) not in self.sizes or not all(self._are_equal(calls, position) for position in self.equal):
            return "all"
        if self.calls < self.next_sample:
            return "none"
        self.next_sample = min(self.calls * _GROWTH, self.calls + self._random.randint(_FEWEST_CALLS, _MOST_CALLS))
        return "a sample"

    def choose(self, calls: Sequence[DenoiserCall]) -> int:
        """Return the part that is run alone: any, as a model may take the first or the last for all."""
        return self._random.randrange(len(calls))

    def note_verified(self, calls: Sequence[DenoiserCall]) -> None:
        """Take note that stacking was found right with all parts of these calls."""
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
        except Exception:  # of tensors without data, say: nobody can tell
            return False


def _size(calls: Sequence[DenoiserCall]) -> int:
    return (sum(call.rows for call in calls) - 1).bit_length()
