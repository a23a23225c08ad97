"""How far two results of one denoiser call are from each other, and how far they may be."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from omni_core.worker.denoiser_call import is_plain
from omni_core.worker.rank_group import RankGroup

# How far a result computed in company may be from the one computed alone: the largest difference as a part of the
# largest value, and the norm of the difference as a part of the norm. Several times what rounding comes to in stock
# models. In half precision the norm is what tells: rounding scatters, a wrong stacking shifts whole rows.
TOLERANCE = {
    torch.float64: (1e-8, 1e-9),
    torch.float32: (1e-4, 3e-5),
    torch.float16: (2e-2, 5e-3),
    torch.bfloat16: (8e-2, 2e-2),
}


def difference(result: Any, right: Any) -> float:
    """Return the largest difference between two trees of tensors in units of the tolerance.

    Returns:
        At most 1 if they agree; infinity if they differ in structure, shape, dtype, in where they are NaN, or in
        anything that is no tensor.
    """
    ours, our_spec = pytree.tree_flatten(result)
    theirs, their_spec = pytree.tree_flatten(right)
    if our_spec != their_spec:
        return math.inf
    worst = 0.0
    for one, other in zip(ours, theirs, strict=True):
        if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
            # What pytree cannot look into may hold anything: it must be one and the same.
            if one is not other and not (is_plain(one) and one == other):
                return math.inf
            continue
        if one.shape != other.shape or one.dtype != other.dtype:
            return math.inf
        if not one.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(one, other) else math.inf)
            continue
        if not torch.equal(one.isnan(), other.isnan()):
            return math.inf
        if one.numel():
            worst = max(worst, _tensor_difference(one, other))
    return worst


def agreed_difference(group: RankGroup, pairs: Iterable[tuple[Any, Any]]) -> float | None:
    """Return the largest `difference` of pairs of results over all ranks, or None if a rank lacks memory to tell."""
    largest, out_of_memory = 0.0, False
    try:
        largest = max(difference(result, right) for result, right in pairs)
    except torch.OutOfMemoryError:
        out_of_memory = True
    largest, any_out_of_memory = group.agree_all("compare results", [largest, out_of_memory])
    return None if any_out_of_memory else largest


def _tensor_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    most, most_norm = TOLERANCE.get(one.dtype, (1e-2, 1e-2))
    ours, theirs = torch.nan_to_num(one.double()), torch.nan_to_num(other.double())
    gap = ours - theirs
    largest = gap.abs().amax().item() / max(theirs.abs().amax().item(), 1e-6)
    norm = gap.norm().item() / max(theirs.norm().item(), 1e-6)
    return float(max(largest / most, norm / most_norm))
