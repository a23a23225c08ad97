"""How far two results of one denoiser call are from each other, and how far they may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from omni_core.error_text import described_error
from omni_core.worker.stacking.call import is_plain
from omni_core.worker.stacking.row_limit import is_out_of_memory

# How far a result computed in company may be from the one computed alone: the largest difference as a part of the
# largest value, and the norm of the difference as a part of the norm. Several times what rounding comes to in stock
# models. In half precision the norm is what tells: rounding scatters, a wrong stacking shifts whole rows.
TOLERANCE = {
    torch.float64: (1e-8, 1e-9),
    torch.float32: (1e-4, 3e-5),
    torch.float16: (2e-2, 5e-3),
    torch.bfloat16: (8e-2, 2e-2),
}

# The same within one channel (the second dimension, or the last), as a part of the channel's largest value. Rounding is
# relative to the largest of all, so that it may be more here: far from what is wrong all the same. In half precision it
# may be as much as the value of a channel that is small.
CHANNEL_TOLERANCE = {torch.float64: 1e-2, torch.float32: 5e-2}

_OK, _RAISED, _OUT_OF_MEMORY = 0, 1, 2


# Of a purpose, the same on all ranks, and the values of this one.
Agree = Callable[[str, Sequence[float]], list[float]]


class IncomparableError(Exception):
    """Nobody can tell whether two results agree. Never leaves the worker."""


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
        if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
            return math.inf
        if not one.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(one, other) else math.inf)
            continue
        if not torch.equal(one.isnan(), other.isnan()):
            return math.inf
        if one.numel():
            worst = max(worst, _tensor_difference(one, other))
    return worst


def agreed_difference(agree: Agree, pairs: Iterable[tuple[Any, Any]]) -> float | None:
    """Return the largest `difference` of pairs of results over all ranks, or None if a rank lacks memory to tell.

    Args:
        agree: Returns the largest of each value over all ranks.
        pairs: Those of this rank.

    Raises:
        IncomparableError: Results cannot be compared on some rank. All ranks raise.
    """
    largest, status, reason = 0.0, _OK, "results cannot be compared on another rank"
    try:
        largest = max((difference(result, right) for result, right in pairs), default=0.0)
    except Exception as error:
        status = _OUT_OF_MEMORY if is_out_of_memory(error) else _RAISED
        reason = f"its results cannot be compared: {described_error(error)}"
    largest, worst = agree("compare results", [largest, status])
    if worst == _RAISED:
        raise IncomparableError(reason)
    return None if worst == _OUT_OF_MEMORY else largest


def _tensor_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    finite = other.isfinite()
    # Those that are not must be the same ones; NaN were looked at before.
    if not torch.equal(one.isfinite(), finite) or not torch.equal(one.isposinf(), other.isposinf()):
        return math.inf
    most, most_norm = TOLERANCE.get(one.dtype, (1e-2, 1e-2))
    nothing = torch.zeros((), dtype=torch.float64, device=one.device)
    theirs = torch.where(finite, other.double(), nothing)
    gap = (torch.where(finite, one.double(), nothing) - theirs).abs()
    largest = gap.amax().item() / max(theirs.abs().amax().item(), 1e-6)
    norm = gap.norm().item() / max(theirs.norm().item(), 1e-6)
    return float(max(largest / most, norm / most_norm, _channel_difference(one.dtype, gap, theirs)))


def _channel_difference(dtype: torch.dtype, gap: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the largest difference within one channel, in units of the tolerance for those.

    One channel may be so large (a mask of -1e6) that all that is wrong in the others is nothing beside it.

    Args:
        dtype: That of the results.
        gap: How far they are from each other, at least 0.
        theirs: The result that is right, of the same shape.
    """
    most = CHANNEL_TOLERANCE.get(dtype)
    worst = 0.0
    for dim in {1, gap.ndim - 1} if most is not None and gap.ndim > 1 else ():
        others = [other for other in range(gap.ndim) if other != dim]
        scale = theirs.abs().amax(others)
        ratios = gap.amax(others)[scale > 0] / scale[scale > 0]
        worst = max(worst, ratios.amax().item() if ratios.numel() else 0.0)
    return worst / (most or 1.0)
