"""Compares two results of one denoiser call with a tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from omni_core.error_text import described_error
from omni_core.worker.stacking.call import is_plain
from omni_core.worker.stacking.row_limit import is_out_of_memory

# Tolerance between a stacked result and the result of running alone: the largest difference relative to the largest
# value, and the norm of the difference relative to the norm. It is several times the rounding error of stock models. In
# half precision the norm is the better criterion: rounding scatters, while wrong stacking shifts whole rows.
TOLERANCE = {
    torch.float64: (1e-8, 1e-9),
    torch.float32: (1e-4, 3e-5),
    torch.float16: (2e-2, 5e-3),
    torch.bfloat16: (8e-2, 2e-2),
}

# Tolerance within one channel (the second or the last dimension), relative to the largest value of the channel.
# Rounding errors are relative to the largest value of the tensor, so this tolerance is larger. In half precision there
# is none: a rounding error may be as large as the values of a small channel.
CHANNEL_TOLERANCE = {torch.float64: 1e-2, torch.float32: 5e-2}

_OK, _RAISED, _OUT_OF_MEMORY = 0, 1, 2


# Called with a purpose, which is the same on all ranks, and the values of this rank. Returns the maxima over all ranks.
Agree = Callable[[str, Sequence[float]], list[float]]


class IncomparableError(Exception):
    """Two results cannot be compared. Never leaves the worker."""


def difference(result: Any, right: Any) -> float:
    """Return the largest difference between two trees of tensors, as a multiple of the tolerance.

    Args:
        result: The result to check: any tree of tensors.
        right: The correct result, with the same structure and shapes.

    Returns:
        At most 1 if they agree; infinity if they differ in structure, shape, dtype, positions of NaN, or in a leaf
        that is not a tensor.
    """
    ours, our_spec = pytree.tree_flatten(result)
    theirs, their_spec = pytree.tree_flatten(right)
    if our_spec != their_spec:
        return math.inf
    worst = 0.0
    for one, other in zip(ours, theirs, strict=True):
        if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
            # A leaf that is not a plain value may hold anything: it must be the same object.
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
    """Return the largest `difference` of pairs of results over all ranks; None if a rank ran out of memory.

    Args:
        agree: Returns the maximum of each value over all ranks.
        pairs: The pairs of this rank.

    Raises:
        IncomparableError: A rank cannot compare its results. All ranks raise.
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
    # Infinities must be at the same positions. NaN were compared before.
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
    """Return the largest difference within one channel, as a multiple of `CHANNEL_TOLERANCE`.

    One channel may be so large (a mask of -1e6) that errors in the others are small relative to it.

    Args:
        dtype: The dtype of the results.
        gap: The absolute differences, `[rows, channels, ...]` or `[rows, ..., channels]`.
        theirs: The correct result, with the same shape.
    """
    most = CHANNEL_TOLERANCE.get(dtype)
    worst = 0.0
    for dim in {1, gap.ndim - 1} if most is not None and gap.ndim > 1 else ():
        others = [other for other in range(gap.ndim) if other != dim]
        scale = theirs.abs().amax(others)
        ratios = gap.amax(others)[scale > 0] / scale[scale > 0]
        worst = max(worst, ratios.amax().item() if ratios.numel() else 0.0)
    return worst / (most or 1.0)
